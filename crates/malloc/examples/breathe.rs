//! A Rust program on the breathing allocator: it fills a map, drops most of it, does nothing, and prints what is
//! resident. `cargo run --release --example breathe -p ebbtide-malloc`

use std::collections::HashMap;
use std::time::Duration;

#[global_allocator]
static HEAP: ebbtide_malloc::Ebbtide = ebbtide_malloc::Ebbtide;

fn pss_kib() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = rollup.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn main() {
    println!("at first:          {:>8} KiB", pss_kib());
    let mut map: HashMap<u32, String> = (0..500_000).map(|i| (i, "x".repeat(i as usize % 400))).collect();
    println!("500,000 strings:   {:>8} KiB", pss_kib());
    map.retain(|i, _| i % 50 == 0);
    map.shrink_to_fit();
    println!("one in 50 is kept: {:>8} KiB", pss_kib());
    std::thread::sleep(Duration::from_secs(2));
    println!("two seconds later: {:>8} KiB ({} strings)", pss_kib(), map.len());
}
