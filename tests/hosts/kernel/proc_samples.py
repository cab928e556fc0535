"""What a guest of 128M (Linux 6.1) printed in the middle of a run, cut down to the lines that somebody reads."""

MEMINFO = """\
MemTotal:         123264 kB
MemFree:            1448 kB
SwapTotal:        263164 kB
SwapFree:         163164 kB
Writeback:           420 kB
HugePages_Total:       0
"""
VMSTAT = """\
nr_free_pages 362
nr_writeback 105
pgalloc_normal 250000
pgalloc_movable 0
allocstall_normal 1500
allocstall_movable 90
pgsteal_kswapd 80000
pgsteal_direct 12867
pgscan_direct_throttle 19
pswpin 65478
pswpout 92867
oom_kill 0
"""
NBD_STAT = "    9000   56478   523824   12345     4000   88868   742944   54321        3    30000    66666        0\n"
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0      0
  vec0: 440000000  524526    0    7    0     0          0         0 400000000   67504    0    1    0     0       0    0
"""
SNMP = """\
Ip: Forwarding DefaultTTL InReceives
Ip: 2 64 524000
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens RetransSegs
Tcp: 1 200 120000 -1 1 3
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 292 0 276448 0 275780 0 0 0 0
"""
NETSTAT = """\
TcpExt: SyncookiesSent PFMemallocDrop TCPRcvQDrop TCPMemoryPressures
TcpExt: 0 668 0 0
IpExt: InNoRoutes InTruncatedPkts
IpExt: 0 0
"""
UDP = """\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  100: 00000000:4E20 00000000:0000 07 00000000:00FFF700 00:00000000 00000000     0        0 120 2 000000006a3e1d80 92000
  144: 00000000:232F 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 119 2 000000006a3e1b00 0
"""
SOFTNET = "000800ce 00000002 00000003 00000000\n00000001 00000001 00000000 00000000\n"
STAT = "cpu  12 0 2978 100 5 1 20 0 0 0\ncpu0 12 0 2978 100 5 1 20 0 0 0\nintr 0\n"
ZONEINFO = """\
Node 0, zone   Normal
  pages free     362
        boost    0
        min      362
        low      452
        high     542
        spanned  32768
        present  32768
        managed  30816
        protection: (0, 0)
Node 0, zone  Movable
  pages free     0
        boost    0
        min      0
        low      0
        high     0
        managed  0
"""
TESTBED = """\
sock_memalloc 0 12
skb_alloc_rx 1 0
kmalloc_reserve 1 700
sk_filter_pfmemalloc 1 668
throttle_direct_reclaim 0 30
count_throttle 1 0
"""
PROGRESS = """\
touches 131072
checked 65536
corrupt 0
touching 3
tasks 8
finished 5
killed 0
write_ns 1000
read_ns 2000
received0 242
received1 50
"""
TEXTS = {
    "meminfo": MEMINFO,
    "vmstat": VMSTAT,
    "nbd0": NBD_STAT,
    "dev": NET_DEV,
    "snmp": SNMP,
    "netstat": NETSTAT,
    "udp": UDP,
    "softnet_stat": SOFTNET,
    "stat": STAT,
    "zoneinfo": ZONEINFO,
    "testbed": TESTBED,
    "progress": PROGRESS,
    "rx_missed_errors": "7\n",
    "rx_dropped": "2\n",
    "version": "6.1.192-testbed\n",
}
