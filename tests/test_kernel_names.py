"""Whoever knows a function of the kernel finds its model by that name: in a definition, or in its docstring."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import testbed

FUNCTIONS = """
ac_get_obj ac_put_obj add_to_swap alloc_page alloc_skb allow_direct_reclaim balance_pgdat buffered_rmqueue build_skb
cache_alloc_pfmemalloc cache_alloc_refill cache_free_pfmemalloc cache_grow congestion_wait copy_skb_header
current_restore_flags dev_alloc_pages dev_alloc_skb do_softirq end_page_writeback fatal_signal_pending free_block
get_partial get_partial_node get_request get_swap_page gfp_pfmemalloc_allowed gfp_to_alloc_flags in_hardirq
in_interrupt in_serving_softirq in_task kernel_sendmsg kfree_skb kfree_skb_reason kmalloc_reserve kmem_getpages
kswapd_try_to_sleep local_bh_disable memalloc_noreclaim_save napi_reuse_skb nbd_do_it nbd_thread netdev_alloc_page
netdev_alloc_skb netif_receive_skb new_slab new_slab_objects nr_free_buffer_pages out_of_memory page_is_pfmemalloc
perform_reclaim pfmemalloc_match pfmemalloc_watermark_ok prepare_kswapd_sleep propagate_pfmemalloc_skb pskb_copy
pskb_expand_head recheck_pfmemalloc_active reclaim_throttle run_filter scan_swap_map set_page_pfmemalloc
setup_per_zone_wmarks shrink_zone sk_add_backlog sk_allocation sk_backlog_rcv sk_clear_memalloc sk_filter
sk_filter_trim_cap sk_gfp_atomic sk_gfp_mask sk_mem_reclaim sk_memalloc_socks sk_rmem_schedule sk_set_memalloc
sk_stream_alloc_skb sk_stream_memory_free sk_stream_wait_memory sk_wmem_schedule skb_alloc_page skb_clone skb_copy
skb_copy_expand skb_fill_page_desc skb_propagate_pfmemalloc slab_alloc slab_test_pfmemalloc sleeping_prematurely
sock_alloc_send_skb sock_queue_rcv_skb sock_xmit tcp_connect tcp_make_synack tcp_send_ack tcp_send_active_reset
tcp_send_fin tcp_sendmsg tcp_transmit_skb tcp_try_rmem_schedule tcp_v4_rcv tcp_xmit_probe_skb throttle_direct_reclaim
too_many_isolated try_to_free_pages tsk_is_oom_victim tsk_restore_flags vm_swap_full wait_iff_congested wake_up_all
wakeup_kswapd
"""
"""The functions that the 16 patches touch or call, in any of the versions modelled; leading underscores left off."""


@pytest.fixture(scope="module")
def source() -> str:
    return "\n".join(file.read_text() for file in Path(testbed.__path__[0]).rglob("*.py"))


@pytest.mark.parametrize("name", FUNCTIONS.split())
def test_a_kernel_function_is_found_by_its_name(name: str, source: str) -> None:
    assert re.search(rf"(?<!\w)_*{name}\b", source)
