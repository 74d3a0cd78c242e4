//! /proc/vmallocinfo (mm/vmalloc.c): who took memory through vmalloc, by the function that asked. Root only.
//!
//! Only areas with pages of their own count ("pages=N"): ioremap and vmap areas map what others account for.
//! Kernel stacks are vmalloc areas with CONFIG_VMAP_STACK; meminfo counts them as KernelStack *and* as
//! VmallocUsed, and this file is where that can be seen.

use crate::{Bytes, Pages, ReadError, Root, scan};
use std::collections::HashMap;

/// Memory behind vmalloc, by caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vmalloc {
    /// (function, bytes), largest first.
    pub callers: Vec<(String, Bytes)>,
    /// Of that, stacks of tasks.
    pub stacks: Bytes,
}

/// Distinct callers kept; the kernel has a few hundred places that call vmalloc.
const CALLERS: usize = 2048;

/// Functions that allocate a task's stack; the inlining compiler decides which of them shows.
const STACK_CALLERS: [&[u8]; 4] =
    [b"dup_task_struct", b"copy_process", b"kernel_clone", b"alloc_thread_stack_node"];

impl Vmalloc {
    /// Reads /proc/vmallocinfo.
    pub fn read(root: &Root) -> Result<Vmalloc, ReadError> {
        let mut by_caller: HashMap<Vec<u8>, Bytes> = HashMap::new();
        root.each_line("proc/vmallocinfo", |line| {
            if let Some((caller, bytes)) = area(line) {
                if let Some(sum) = by_caller.get_mut(caller) {
                    *sum += bytes;
                } else if by_caller.len() < CALLERS {
                    by_caller.insert(caller.to_vec(), bytes);
                }
            }
            true
        })?;
        let stacks = STACK_CALLERS.iter().filter_map(|caller| by_caller.get(*caller)).copied().sum();
        let mut callers: Vec<(String, Bytes)> = by_caller
            .into_iter()
            .map(|(caller, bytes)| (String::from_utf8_lossy(&caller).into_owned(), bytes))
            .collect();
        callers.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Ok(Vmalloc { callers, stacks })
    }

    /// True for a caller that allocates stacks of tasks.
    pub fn is_stack(&self, caller: &str) -> bool {
        STACK_CALLERS.contains(&caller.as_bytes())
    }
}

/// The calling function and the bytes of one area, where it has pages of its own.
fn area(line: &[u8]) -> Option<(&[u8], Bytes)> {
    let mut words = scan::words(line).skip(2);
    let caller = words.next()?.split(|&b| b == b'+').next()?;
    let pages = words.find_map(|word| word.strip_prefix(b"pages="))?;
    Some((caller, Pages(scan::number(pages)?).bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn areas_with_pages_count() {
        let line =
            b"0x00000000c814e1c8-0x000000001b0afefe   20480 kernel_clone+0x94/0x3e0 pages=4 vmalloc N0=4";
        assert_eq!(area(line), Some((&b"kernel_clone"[..], Pages(4).bytes())));
        assert_eq!(area(b"0x1-0x2   12288 acpi_os_map_iomem+0x1bc/0x1e0 phys=0x9f000 ioremap"), None);
        assert_eq!(area(b"0x1-0x2   12288 unpurged vm_area"), None);
    }

    proptest! {
        #[test]
        fn never_panics(line: Vec<u8>) {
            area(&line);
        }
    }
}
