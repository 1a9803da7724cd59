//! Pages of real programs and texts, from what any machine that builds this has.

use std::fs;

use vswap_core::{PAGE_SIZE, Page};

/// `count` pages at most of this test's machine code and symbols, and the crate's source text.
pub fn pages(count: usize) -> Vec<Page> {
    let elf = fs::read("/proc/self/exe").expect("own executable");
    let text: Vec<u8> = ["mod.rs", "segment.rs", "space.rs", "lists.rs", "compact.rs", "class.rs"]
        .iter()
        .flat_map(|name| fs::read(format!("{}/src/pool/{name}", env!("CARGO_MANIFEST_DIR"))))
        .flatten()
        .collect();
    let (elf, text) = (elf.as_chunks::<PAGE_SIZE>().0, text.as_chunks::<PAGE_SIZE>().0);
    let step = (elf.len() / count.saturating_sub(text.len()).max(1)).max(1);
    text.iter().chain(elf.iter().step_by(step)).take(count).map(|chunk| Page(*chunk)).collect()
}
