//! /proc/slabinfo (mm/slab_common.c): the kernel's own allocator, cache by cache. Readable by root only.
//!
//! A cache's bytes are its slabs' pages, free objects included: a slab goes back only when its last object
//! does. SLUB counts objects on per-CPU slabs as active, so `active` is an upper bound (measured: a few
//! hundred objects for each CPU and cache). Caches of like size are merged under the first one's name.

use crate::{Bytes, Pages, ReadError, Root, scan};

/// One slab cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlabCache {
    /// The kernel's name for it ("dentry", "kmalloc-rcl-64").
    pub name: String,
    /// Objects in use, an upper bound.
    pub active: u64,
    /// Objects there is room for.
    pub objects: u64,
    /// Size of one object.
    pub object_size: Bytes,
    /// Pages of all its slabs.
    pub bytes: Bytes,
    /// Whether it counts as SReclaimable (/sys/kernel/slab/NAME/reclaim_account); `None` where unreadable.
    pub reclaimable: Option<bool>,
}

/// All slab caches, the largest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slabs {
    /// The caches.
    pub caches: Vec<SlabCache>,
}

/// As many of the largest caches are asked whether they are reclaimable.
const ASKED: usize = 24;

impl Slabs {
    /// Parses /proc/slabinfo, version 2.x. Lines that do not parse are skipped.
    pub fn parse(text: &[u8]) -> Slabs {
        let mut caches: Vec<SlabCache> = scan::lines(text).filter_map(cache).collect();
        caches.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        Slabs { caches }
    }

    /// Reads /proc/slabinfo, and of the largest caches whether they can be reclaimed.
    pub fn read(root: &Root) -> Result<Slabs, ReadError> {
        let mut buf = Vec::new();
        let mut slabs = Slabs::parse(root.read("proc/slabinfo", &mut buf)?);
        for cache in slabs.caches.iter_mut().take(ASKED) {
            if cache.name.contains('/') {
                continue;
            }
            let path = format!("sys/kernel/slab/{}/reclaim_account", cache.name);
            cache.reclaimable = root.read_number(&path).ok().map(|n| n != 0);
        }
        Ok(slabs)
    }

    /// The cache of this name.
    pub fn get(&self, name: &str) -> Option<&SlabCache> {
        self.caches.iter().find(|cache| cache.name == name)
    }

    /// Bytes of the cache of this name; zero where there is none.
    pub fn bytes(&self, name: &str) -> Bytes {
        self.get(name).map_or(Bytes::ZERO, |cache| cache.bytes)
    }
}

impl SlabCache {
    /// True for caches of inodes, whatever the file system.
    pub fn holds_inodes(&self) -> bool {
        self.name.contains("inode")
    }

    /// Whether the kernel can drop its objects: by what sysfs says, else by name. The names are those created
    /// with SLAB_RECLAIM_ACCOUNT in 6.1 (fs/dcache.c, every file system's inode cache, lib/xarray.c, mm/slab_common.c
    /// for kmalloc-rcl-*, fs/buffer.c, fs/ext4/extents_status.c).
    pub fn is_reclaimable(&self) -> bool {
        self.reclaimable.unwrap_or_else(|| {
            self.holds_inodes()
                || self.name.starts_with("kmalloc-rcl-")
                || matches!(
                    self.name.as_str(),
                    "dentry" | "radix_tree_node" | "xarray_node" | "buffer_head" | "ext4_extent_status"
                )
        })
    }
}

fn cache(line: &[u8]) -> Option<SlabCache> {
    if line.starts_with(b"#") || line.starts_with(b"slabinfo") {
        return None;
    }
    let mut words = scan::words(line);
    let name = String::from_utf8_lossy(words.next()?).into_owned();
    let mut next = || words.next().and_then(scan::number);
    let (active, objects, size) = (next()?, next()?, next()?);
    let (_per_slab, pages_per_slab) = (next()?, next()?);
    let slabs = words.skip_while(|w| *w != b"slabdata").nth(2).and_then(scan::number)?;
    let bytes = Pages(slabs.saturating_mul(pages_per_slab)).bytes();
    Some(SlabCache { name, active, objects, object_size: Bytes(size), bytes, reclaimable: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &[u8] = b"slabinfo - version: 2.1\n\
        # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables\n\
        ext4_inode_cache     100    150   1096   29    8 : tunables    0    0    0 : slabdata      5      6      0\n\
        dentry            659032 659043    192   21    1 : tunables    0    0    0 : slabdata  31383  31383      0\n\
        broken line\n";

    #[test]
    fn caches_by_size() {
        let slabs = Slabs::parse(TEXT);
        let names: Vec<_> = slabs.caches.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["dentry", "ext4_inode_cache"]);
        assert_eq!(slabs.bytes("dentry"), Pages(31383).bytes());
        assert_eq!(slabs.bytes("ext4_inode_cache"), Pages(48).bytes());
        assert!(slabs.caches.iter().all(SlabCache::is_reclaimable));
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            Slabs::parse(&text);
        }
    }
}
