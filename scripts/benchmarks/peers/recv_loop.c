/* The yardstick for receiving: a packet socket, recvfrom(2) in a loop, every frame counted and dropped.
 * Usage: recv_loop IFNAME SECONDS; prints "ready" once it listens, then "FRAMES SECONDS CPU-SECONDS". */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

static double now(clockid_t which)
{
	struct timespec t;
	clock_gettime(which, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
	static unsigned char frame[70000];
	if (argc != 3)
		return 2;
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	int buffer = 64 << 20, one = 1;
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
	setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one);
	struct timeval patience = {.tv_usec = 20000};
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL),
				      .sll_ifindex = (int)if_nametoindex(argv[1])};
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address)) {
		perror(argv[1]);
		return 1;
	}
	puts("ready");
	fflush(stdout);
	double start = now(CLOCK_MONOTONIC), end = start + atof(argv[2]);
	unsigned long count = 0;
	for (unsigned turn = 0; (turn & 63) || now(CLOCK_MONOTONIC) < end; turn++)
		if (recvfrom(fd, frame, sizeof frame, 0, NULL, NULL) > 0)
			count++;
		else
			turn |= 63; /* idle: look at the clock next */
	printf("%lu %.6f %.6f\n", count, now(CLOCK_MONOTONIC) - start, now(CLOCK_PROCESS_CPUTIME_ID));
	return 0;
}
