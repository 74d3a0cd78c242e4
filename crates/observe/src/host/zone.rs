//! /proc/zoneinfo, /proc/buddyinfo, /proc/pagetypeinfo and debugfs's extfrag/extfrag_index: the page allocator's
//! zones (mm/vmstat.c).

use crate::{Bytes, Pages, ReadError, Root, scan};

/// One zone of one NUMA node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    /// NUMA node.
    pub node: u32,
    /// "DMA", "DMA32", "Normal", "Movable", "Device", "HighMem".
    pub name: String,
    /// Pages the zone manages. The sum over all zones is MemTotal, or below it where the kernel initialises
    /// memory only when it is first needed (seen on a 6.18 guest: 5 GB managed of 24 GB, the rest in MemFree).
    pub managed: Pages,
    /// Free pages in the buddy allocator.
    pub free: Pages,
    /// Below this many free pages only the kernel's emergencies are served.
    pub min: Pages,
    /// Below this many, kswapd reclaims.
    pub low: Pages,
    /// Up to this many kswapd goes on.
    pub high: Pages,
    /// Pages on per-CPU lists: free, but not in MemFree.
    pub pcp: Pages,
    /// Free blocks of 2^i pages (/proc/buddyinfo); empty where that was not read.
    pub free_blocks: Vec<u64>,
    /// Why an allocation of 2^i pages would fail, in thousandths (extfrag_index): 1000 as the free memory is in
    /// splinters, 0 as there is too little of it, -1000 where it would not fail. Empty without debugfs, root, or
    /// CONFIG_COMPACTION.
    pub fragmentation_index: Vec<i16>,
}

impl Zone {
    /// Free pages in blocks of at least 2^order pages.
    pub fn free_at_or_above(&self, order: usize) -> Pages {
        let blocks = self.free_blocks.iter().enumerate().skip(order);
        Pages(blocks.map(|(order, &n)| n.saturating_mul(1 << order.min(32))).fold(0, u64::saturating_add))
    }
}

/// Every zone of every node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zones {
    /// The zones, in the kernel's order.
    pub zones: Vec<Zone>,
}

impl Zones {
    /// Parses /proc/zoneinfo; what does not parse stays zero.
    pub fn parse(text: &[u8]) -> Zones {
        let mut out = Zones::default();
        for line in scan::lines(text) {
            out.zone_line(line);
        }
        out
    }

    fn zone_line(&mut self, line: &[u8]) {
        if let Some(rest) = line.strip_prefix(b"Node ") {
            let mut words = scan::words(rest);
            let node = words.next().and_then(scan::number).unwrap_or(0);
            let name = words.nth(1).unwrap_or_default();
            self.zones.push(Zone {
                node: u32::try_from(node).unwrap_or(u32::MAX),
                name: String::from_utf8_lossy(name).into_owned(),
                ..Zone::default()
            });
            return;
        }
        let Some(zone) = self.zones.last_mut() else { return };
        let mut words = scan::words(line);
        let (Some(key), value) = (words.next(), words.next()) else { return };
        match (key, value) {
            (b"pages", Some(b"free")) => {
                zone.free = words.next().and_then(scan::number).map_or(zone.free, Pages)
            }
            (b"count:", Some(n)) => zone.pcp += Pages(scan::number(n).unwrap_or(0)),
            (key, Some(n)) => {
                let field = match key {
                    b"min" => &mut zone.min,
                    b"low" => &mut zone.low,
                    b"high" => &mut zone.high,
                    b"managed" => &mut zone.managed,
                    _ => return,
                };
                *field = scan::number(n).map_or(*field, Pages);
            }
            _ => {}
        }
    }

    /// Adds the free blocks of /proc/buddyinfo to the zones of the same name.
    pub fn add_buddyinfo(&mut self, text: &[u8]) {
        self.each_row(text, |zone, by_order| zone.free_blocks = by_order.map_while(scan::number).collect());
    }

    /// Adds the figures of extfrag_index to the zones of the same name.
    pub fn add_extfrag_index(&mut self, text: &[u8]) {
        self.each_row(text, |zone, by_order| {
            zone.fragmentation_index = by_order.map_while(thousandths).collect();
        });
    }

    /// Calls `each` with the zone and the words by order, 32 at most, of every "Node 0, zone Normal ..." in `text`.
    fn each_row<'t>(&mut self, text: &'t [u8], each: impl Fn(&mut Zone, &mut dyn Iterator<Item = &'t [u8]>)) {
        for line in scan::lines(text) {
            let Some((node, rest)) = scan::key_value(line, b',') else { continue };
            let node = node.strip_prefix(b"Node ").and_then(scan::number);
            let mut words = scan::words(rest);
            let (Some(b"zone"), Some(name)) = (words.next(), words.next()) else { continue };
            let zone =
                self.zones.iter_mut().find(|z| Some(u64::from(z.node)) == node && z.name.as_bytes() == name);
            if let Some(zone) = zone {
                each(zone, &mut words.take(32));
            }
        }
    }

    /// Reads /proc/zoneinfo, /proc/buddyinfo and, where it may be read, extfrag_index.
    pub fn read(root: &Root) -> Result<Zones, ReadError> {
        let mut zones = Zones::default();
        root.each_line("proc/zoneinfo", |line| {
            zones.zone_line(line);
            true
        })?;
        let mut buf = Vec::new();
        if let Ok(text) = root.read("proc/buddyinfo", &mut buf) {
            zones.add_buddyinfo(text);
        }
        if let Ok(text) = root.read("sys/kernel/debug/extfrag/extfrag_index", &mut buf) {
            zones.add_extfrag_index(text);
        }
        Ok(zones)
    }

    /// Free pages that wait on per-CPU lists.
    pub fn pcp(&self) -> Bytes {
        self.zones.iter().map(|zone| zone.pcp).sum::<Pages>().bytes()
    }
}

/// "-1.000" as -1000.
fn thousandths(word: &[u8]) -> Option<i16> {
    let (sign, digits) = word.strip_prefix(b"-").map_or((1, word), |digits| (-1, digits));
    let (whole, rest) = scan::key_value(digits, b'.')?;
    let value = scan::number(whole)?.checked_mul(1000)?.checked_add(scan::number(rest)?)?;
    (rest.len() == 3).then(|| i16::try_from(value).ok().map(|value| sign * value))?
}

/// Free blocks by mobility, from /proc/pagetypeinfo (readable by root): for each order, the free blocks in
/// pageblocks of unmovable, movable and reclaimable pages, all zones together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageTypes {
    /// (type, free blocks by order), types as the kernel names them.
    pub types: Vec<(String, Vec<u64>)>,
}

impl PageTypes {
    /// Parses the "Free pages count per migrate type at order" section.
    pub fn parse(text: &[u8]) -> PageTypes {
        let mut out = PageTypes::default();
        for line in scan::lines(text) {
            let Some(at) = line.windows(5).position(|w| w == b"type ") else { continue };
            if !line.starts_with(b"Node") || !line.contains(&b',') {
                continue;
            }
            let mut words = scan::words(&line[at + 5..]);
            let Some(name) = words.next() else { continue };
            // A count that took too long is written ">100000".
            let counts: Vec<u64> = words
                .take(32)
                .map_while(|word| scan::number(word.strip_prefix(b">").unwrap_or(word)))
                .collect();
            out.add(&String::from_utf8_lossy(name), &counts);
        }
        out
    }

    fn add(&mut self, name: &str, counts: &[u64]) {
        if counts.is_empty() {
            return;
        }
        let at = self.types.iter().position(|(n, _)| n == name).unwrap_or_else(|| {
            self.types.push((name.to_owned(), Vec::new()));
            self.types.len() - 1
        });
        let sums = &mut self.types[at].1;
        sums.resize(sums.len().max(counts.len()), 0);
        for (sum, &n) in sums.iter_mut().zip(counts) {
            *sum = sum.saturating_add(n);
        }
    }

    /// Reads /proc/pagetypeinfo.
    pub fn read(root: &Root) -> Result<PageTypes, ReadError> {
        let mut buf = Vec::new();
        Ok(PageTypes::parse(root.read("proc/pagetypeinfo", &mut buf)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ZONEINFO: &[u8] = b"Node 0, zone    DMA32\n  per-node stats\n      nr_inactive_anon 1\n  pages free     511\n        boost    0\n        min      10\n        low      20\n        high     30\n        managed  2048\n  pagesets\n    cpu: 0\n              count:    11\n              high:     8676\n    cpu: 1\n              count:    5\n";

    #[test]
    fn zones_with_their_free_blocks() {
        let mut zones = Zones::parse(ZONEINFO);
        zones.add_buddyinfo(b"Node 0, zone    DMA32      1      2      0      1 \nNode 9, zone X 1\n");
        let zone = &zones.zones[0];
        assert_eq!((zone.managed, zone.free, zone.low), (Pages(2048), Pages(511), Pages(20)));
        assert_eq!((zone.high, zone.pcp), (Pages(30), Pages(16)));
        assert_eq!(zone.free_at_or_above(1), Pages(12));
        assert_eq!(zone.free_at_or_above(40), Pages(0));
    }

    #[test]
    fn why_an_allocation_would_fail() {
        let mut zones = Zones::parse(ZONEINFO);
        zones.add_extfrag_index(b"Node 0, zone    DMA32 -1.000 0.000 0.497 0.983 \nNode 1, zone DMA32 0.1\n");
        assert_eq!(zones.zones[0].fragmentation_index, [-1000, 0, 497, 983]);
    }

    #[test]
    fn this_machines_zones_are_within_mem_total() {
        let root = Root::live().unwrap();
        let managed: Pages = Zones::read(&root).unwrap().zones.iter().map(|z| z.managed).sum();
        assert!(managed > Pages(0));
        assert!(managed.bytes() <= super::super::Meminfo::read(&root).unwrap().mem_total);
    }

    #[test]
    fn page_types() {
        let text = b"Free pages count per migrate type at order 0 1\n\
            Node    0, zone   Normal, type    Unmovable      3 >100000\n\
            Node    1, zone   Normal, type    Unmovable      1      0\n\
            Number of blocks type     Unmovable\nNode 0, zone Normal 12\n";
        assert_eq!(PageTypes::parse(text).types, [("Unmovable".to_owned(), vec![4, 100_000])]);
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let mut zones = Zones::parse(&text);
            zones.add_buddyinfo(&text);
            zones.add_extfrag_index(&text);
            let _ = (zones.pcp(), PageTypes::parse(&text));
        }
    }
}
