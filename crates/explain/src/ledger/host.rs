//! The host's ledger: MemTotal in exclusive lines.
//!
//! Order is trust. First what meminfo counts page by page and only once; then what it counts in two places,
//! taken apart (kernel stacks are vmalloc areas, shmem is page cache, swap cache may be mapped); last the
//! estimates, which only take what is left: socket buffers and the ZFS cache lie partly in slab and vmalloc,
//! and nobody says how much. Nothing is scaled to fit: what no line explains is `unaccounted`.

use super::{Ledger, Line};
use ebbtide_observe::Bytes;
use ebbtide_observe::host::{HostSample, SlabCache, Slabs};

/// Children shown of one line; the rest is summed in a child of its own.
const SHOWN: usize = 12;

/// Splits MemTotal. `anon` and `shmem` are what is known of the two lines from processes and mounts.
pub fn host(sample: &HostSample, anon: Vec<Line>, shmem: Vec<Line>) -> Ledger {
    let mem = &sample.meminfo;
    let mut ledger = Ledger::of(mem.mem_total);
    ledger.fill(Line::new("free", mem.mem_free));
    ledger.fill(
        Line::new("free-per-cpu", sample.zones.pcp()).note("free pages on per-CPU lists, not in MemFree"),
    );
    ledger.fill(Line::new("anon", mem.anon_pages).children(rest_as(anon, mem.anon_pages, "other processes")));
    ledger.fill(
        Line::new("page-cache", mem.page_cache())
            .children([Line::new("files", mem.cached - mem.shmem), Line::new("buffers", mem.buffers)]),
    );
    ledger.fill(Line::new("shmem", mem.shmem).children(rest_as(shmem, mem.shmem, "other shared memory")));
    ledger.fill(Line::new("swap-cache", unmapped_swap_cache(sample)));
    let slabs = sample.slabs.as_ref();
    ledger.fill(Line::new("slab-reclaimable", mem.s_reclaimable).children(reclaimable(sample, slabs)));
    ledger.fill(
        Line::new("slab-unreclaimable", mem.s_unreclaim).children(unreclaimable(mem.s_unreclaim, slabs)),
    );
    ledger.fill(Line::new("kernel-reclaimable", mem.k_reclaimable - mem.s_reclaimable));
    ledger.fill(Line::new("page-tables", mem.page_tables + mem.sec_page_tables).children([
        Line::new("of processes", mem.page_tables),
        Line::new("of virtual machines and IOMMUs", mem.sec_page_tables),
    ]));
    ledger.fill(Line::new("kernel-stacks", mem.kernel_stack));
    ledger.fill(Line::new("vmalloc", vmalloc_without_stacks(sample)).children(vmalloc_callers(sample)));
    ledger.fill(Line::new("percpu", mem.percpu));
    ledger.fill(Line::new("page-structs", sample.vmstat.memmap().bytes()));
    ledger.fill(hugetlb(sample));
    for line in compressed(sample) {
        ledger.fill(line);
    }
    ledger.fill(Line::new("bounce", mem.bounce));
    ledger.fill(balloon(sample));
    ledger.fill(
        Line::new("gpu", mem.gpu_active + mem.gpu_reclaim)
            .children([Line::new("in use", mem.gpu_active), Line::new("reclaimable", mem.gpu_reclaim)]),
    );
    ledger.fill(Line::new("unaccepted", mem.unaccepted));
    estimates(&mut ledger, sample);
    ledger
}

/// Swap-cache pages that are not mapped too: LRU lists hold every page once, the sums of meminfo do not.
fn unmapped_swap_cache(sample: &HostSample) -> Bytes {
    let mem = &sample.meminfo;
    let counted = mem.anon_pages + mem.cached + mem.buffers;
    (mem.lru() - counted).min(mem.swap_cached)
}

/// With CONFIG_VMAP_STACK (x86_64 and arm64 since 4.9 and 4.14) VmallocUsed holds the kernel stacks as well.
/// /proc/vmallocinfo shows it; without the right to read that, a VmallocUsed too small to hold them does.
fn vmalloc_without_stacks(sample: &HostSample) -> Bytes {
    let mem = &sample.meminfo;
    let mapped = match &sample.vmalloc {
        Some(vmalloc) => vmalloc.stacks > Bytes::ZERO,
        None => mem.vmalloc_used >= mem.kernel_stack,
    };
    if mapped { mem.vmalloc_used - mem.kernel_stack } else { mem.vmalloc_used }
}

fn vmalloc_callers(sample: &HostSample) -> Vec<Line> {
    let Some(vmalloc) = &sample.vmalloc else { return Vec::new() };
    let shown = vmalloc.callers.iter().filter(|(caller, _)| !vmalloc.is_stack(caller));
    rest_as(
        shown.map(|(caller, bytes)| Line::new(caller.clone(), *bytes)).collect(),
        vmalloc_without_stacks(sample),
        "other callers",
    )
}

fn reclaimable(sample: &HostSample, slabs: Option<&Slabs>) -> Vec<Line> {
    let total = sample.meminfo.s_reclaimable;
    let Some(slabs) = slabs else { return Vec::new() };
    let caches = slabs.caches.iter().filter(|cache| cache.is_reclaimable());
    let line = |cache: &SlabCache| {
        let line = Line::new(cache.name.clone(), cache.bytes);
        if cache.name == "dentry" { line.children(dentries(sample, cache.bytes)) } else { line }
    };
    rest_as(caches.map(line).collect(), total, "other reclaimable caches")
}

fn dentries(sample: &HostSample, bytes: Bytes) -> Vec<Line> {
    let state = &sample.dentries;
    let negative = bytes.scaled(state.negative.min(state.dentries) as f64 / state.dentries.max(1) as f64);
    vec![
        Line::new("negative", negative).note("names that do not exist"),
        Line::new("of files", bytes - negative),
    ]
}

/// Slab above the size of the largest cache comes straight from the page allocator and has no cache.
fn unreclaimable(total: Bytes, slabs: Option<&Slabs>) -> Vec<Line> {
    let Some(slabs) = slabs else { return Vec::new() };
    let caches = slabs.caches.iter().filter(|cache| !cache.is_reclaimable());
    let all: Vec<Line> = caches.map(|cache| Line::new(cache.name.clone(), cache.bytes)).collect();
    let large = total - all.iter().map(|line| line.bytes).sum();
    let mut lines = rest_as(all, total - large, "other caches");
    lines.push(Line::new("large kmalloc, in no cache", large));
    lines
}

fn hugetlb(sample: &HostSample) -> Line {
    let pools = sample.huge_pools.iter();
    let children = pools.flat_map(|pool| {
        [
            Line::new(
                format!("{} pages, in use", pool.page),
                pool.page * pool.total.saturating_sub(pool.free),
            ),
            Line::new(format!("{} pages, free", pool.page), pool.page * pool.free),
        ]
    });
    Line::new("hugetlb", sample.meminfo.hugetlb).children(children)
}

/// zsmalloc's pages by who uses them.
fn compressed(sample: &HostSample) -> [Line; 3] {
    let devices = sample.zram.iter().map(|z| Line::new(z.name.clone(), z.used));
    let zram: Bytes = sample.zram.iter().map(|z| z.used).sum();
    let zswap = sample.meminfo.zswap;
    let pool = sample.vmstat.zspages().bytes();
    [
        Line::new("zram", zram).children(devices),
        Line::new("zswap", zswap),
        Line::new("zsmalloc", pool - zram - zswap).note("compressed memory of neither zram nor zswap"),
    ]
}

/// Newer kernels say what the balloon holds of MemTotal. Older ones only count what it took, and most drivers
/// lower MemTotal by it; then it is no line here, and what is left of it stays unaccounted.
fn balloon(sample: &HostSample) -> Line {
    Line::new("balloon", sample.meminfo.balloon).note("lent to the hypervisor")
}

/// What lies partly in other lines may take only what those leave over.
fn estimates(ledger: &mut Ledger, sample: &HostSample) {
    let tcp = sample.sockstat.tcp_mem.bytes();
    let unix = sample.unix_sockets.queued;
    let sockets = Line::new("socket-buffers", (tcp + unix).min(ledger.unaccounted))
        .children([Line::new("tcp", tcp), Line::new("unix", unix)])
        .note("what of them is not slab");
    ledger.fill(sockets);
    if let Some(arc) = &sample.arc {
        ledger.fill(
            Line::new("zfs-arc", arc.size.min(ledger.unaccounted)).note("what of it is not slab or vmalloc"),
        );
    }
    let ballooned = sample.vmstat.balloon().bytes() - sample.meminfo.balloon;
    let visible = ballooned > Bytes::ZERO && ledger.unaccounted >= ballooned.scaled(0.9);
    if visible {
        ledger.fill(Line::new("balloon", ballooned.min(ledger.unaccounted)).note("lent to the hypervisor"));
    }
}

/// `lines` with all but the largest, and what they leave of `total`, summed under `name`.
fn rest_as(mut lines: Vec<Line>, total: Bytes, name: &str) -> Vec<Line> {
    if lines.is_empty() {
        return lines;
    }
    lines.sort_by_key(|line| std::cmp::Reverse(line.bytes));
    lines.truncate(SHOWN);
    let shown: Bytes = lines.iter().map(|line| line.bytes).sum();
    lines.push(Line::new(name, total - shown));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_observe::Root;
    use ebbtide_observe::host::{Meminfo, Vmalloc};

    fn mib(n: u64) -> Bytes {
        Bytes::from_mib(n)
    }

    fn sample() -> HostSample {
        let meminfo = Meminfo {
            mem_total: mib(1000),
            mem_free: mib(400),
            cached: mib(200),
            shmem: mib(50),
            buffers: mib(10),
            anon_pages: mib(100),
            s_reclaimable: mib(100),
            s_unreclaim: mib(20),
            vmalloc_used: mib(30),
            kernel_stack: mib(8),
            ..Meminfo::default()
        };
        HostSample { meminfo, ..HostSample::default() }
    }

    #[test]
    fn stacks_count_once() {
        let mut s = sample();
        let ledger = host(&s, vec![], vec![]);
        assert_eq!((ledger.bytes("vmalloc"), ledger.bytes("kernel-stacks")), (mib(22), mib(8)));
        s.vmalloc = Some(Vmalloc::default());
        assert_eq!(host(&s, vec![], vec![]).bytes("vmalloc"), mib(30), "no stack is a vmalloc area");
        s.vmalloc = None;
        s.meminfo.vmalloc_used = Bytes::ZERO;
        assert_eq!(host(&s, vec![], vec![]).bytes("kernel-stacks"), mib(8));
    }

    #[test]
    fn shmem_is_not_page_cache() {
        let ledger = host(&sample(), vec![], vec![Line::new("/tmp", mib(40))]);
        assert_eq!((ledger.bytes("page-cache"), ledger.bytes("shmem")), (mib(160), mib(50)));
        let children = &ledger.line("shmem").unwrap().children;
        assert_eq!((children[0].bytes, children[1].bytes), (mib(40), mib(10)));
    }

    #[test]
    fn sockets_take_only_what_is_left() {
        let mut s = sample();
        let left = host(&s, vec![], vec![]).unaccounted;
        s.sockstat.tcp_mem = ebbtide_observe::Pages(u64::MAX);
        let ledger = host(&s, vec![], vec![]);
        assert_eq!((ledger.bytes("socket-buffers"), ledger.unaccounted), (left, Bytes::ZERO));
    }

    #[test]
    fn this_machine_is_accounted_for() {
        // The kernel's files are read one after the other, while others work.
        let mut shares = (0..10).map(|_| {
            let ledger = host(&HostSample::read(&Root::live().unwrap()).unwrap(), vec![], vec![]);
            let lines: Bytes = ledger.lines.iter().map(|line| line.bytes).sum();
            assert_eq!(lines + ledger.unaccounted, ledger.total);
            ledger.unaccounted.share_of(ledger.total)
        });
        assert!(shares.any(|share| share <= 0.02), "in every look");
    }
}
