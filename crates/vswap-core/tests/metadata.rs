//! What a swapped-out page costs beside its compressed bytes, asked of the allocators and checked
//! against the kernel's count of this process's memory.

mod common;

use common::Random;
use vswap_core::platform::MmapPlatform;
use vswap_core::{CodecKind, GroupId, Limits, PAGE_SIZE, Page, SwapEntry, VirtualSwap};

const PAGES: usize = 1 << 20;

static SPACE: VirtualSwap<MmapPlatform> = VirtualSwap::new(MmapPlatform, Limits::NONE);

/// The client's own word for a page, which is counted too.
const PAGE_TABLE_WORD: f64 = 4.0;

/// Anonymous memory of this process, in bytes.
fn anonymous() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("procfs");
    let line = rollup.lines().find(|line| line.starts_with("Anonymous:")).expect("a Linux kernel");
    let kib = line.split_whitespace().nth(1).and_then(|number| number.parse::<usize>().ok());
    kib.expect("a number of KiB") << 10
}

/// Pages whose compressed size is spread from a few dozen bytes to over 1 KiB.
fn samples() -> Vec<Page> {
    let mut random = Random::new(1);
    let page = |length: usize| {
        let mut page = Page::ZERO;
        for byte in &mut page.0[..length] {
            *byte = random.next() as u8;
        }
        page
    };
    (1..=64).map(|n| n * 20).map(page).collect()
}

#[test]
fn a_compressed_page_costs_at_most_16_bytes_of_metadata() {
    let mut samples = samples();
    let mut entries: Vec<Option<SwapEntry>> = vec![None; PAGES];
    // Written, so that it is counted before.
    entries.fill(SwapEntry::from_raw(1));
    let before = anonymous();
    let mut worker = SPACE.worker(CodecKind::Lz4).expect("memory");
    for (number, entry) in entries.iter_mut().enumerate() {
        let kinds = samples.len();
        let page = &mut samples[number * 7 % kinds];
        page.0[PAGE_SIZE - 8..].copy_from_slice(&(number as u64).to_ne_bytes());
        *entry = Some(SPACE.swap_out(&mut worker, GroupId::ROOT, page).expect("room"));
    }
    let usage = SPACE.usage();
    let counted = usage.pool_memory + usage.metadata.total();
    let resident = anonymous() - before;

    let per_page = |bytes: usize| bytes as f64 / PAGES as f64;
    let metadata = per_page(usage.metadata.total()) + PAGE_TABLE_WORD;
    let parts = usage.metadata;
    println!("bytes per page, {PAGES} pages of {:.0} bytes:", per_page(usage.payload));
    for (what, bytes) in [
        ("descriptors", parts.descriptors),
        ("cluster headers", parts.headers),
        ("pool bookkeeping", parts.pool),
        ("side tables", parts.side_tables),
        ("groups and counters", parts.tables),
        ("workers", parts.workers),
        ("the space itself", parts.fixed),
    ] {
        println!("  {what:20} {:8.4}", per_page(bytes));
    }
    println!("  {:20} {PAGE_TABLE_WORD:8.4}", "page-table word");
    println!("  {:20} {metadata:8.4}", "sum");
    let density = usage.payload as f64 / usage.pool_memory as f64;
    println!("payload / pool memory: {density:.4}");
    println!("counted {counted}, resident {resident} bytes");

    assert_eq!(usage.live_slots, PAGES as u64);
    assert!(metadata <= 16.0, "{metadata:.2} bytes of metadata per page");
    let difference = (counted as f64 / resident as f64 - 1.0).abs();
    assert!(difference < 0.03, "counted and resident differ by {:.2} %", difference * 100.0);

    // And all of it goes back.
    let entries: Vec<SwapEntry> = entries.into_iter().flatten().collect();
    SPACE.free_many(&entries);
    SPACE.retire(worker);
    let usage = SPACE.usage();
    assert_eq!((usage.live_slots, usage.clusters, usage.pool_memory), (0, 0, 0));
    let left = anonymous().saturating_sub(before);
    assert!(left < resident / 50, "{left} bytes are still resident");
    SPACE.check();
}
