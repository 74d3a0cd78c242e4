//! Processes whose answer lies inside their heap: what the allocator keeps, what is fragmented, what each arena
//! keeps for itself, garbage, kept capacity; and live memory that grows, beside such that levels off.

use crate::actor::Actor;
use crate::case::{Case, INNOCENT, Need, Truth, is};
use crate::procfs;
use crate::programs::{self, Language};
use crate::region::{Kind, PAGE, Region};
use crate::stage::Stage;
use crate::sys;
use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

const GLIBC: &[Need] = &[Need::Glibc];
const LUA: &[Need] = &[Need::Program("luajit")];
const MUSL: &[Need] = &[Need::Program("musl-gcc")];
const PYTHON: &[Need] = &[Need::Glibc, Need::Program("python3")];
const REDIS: &[Need] = &[Need::Program("redis-server"), Need::Program("redis-cli")];
const RETENTION: Truth = is("allocator-retention").near("freed", 10);
const SLACK: Truth = is("capacity-slack").near("slack", 20);
/// What a honest look may call doubt, but no leak.
const NO_LEAK: Truth = INNOCENT.or(&[Some("undetermined")]);

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::process(
        "allocator-retention/pinned-top",
        "300 MB freed under a block that lives",
        RETENTION,
        |s| {
            let mut blocks = blocks(300 << 10, 1000);
            free(s, &mut blocks, |n| n + 1 < 300 << 10)?;
            keep(s, blocks)
        },
    )
    .needs(GLIBC),
    Case::process("allocator-retention/runs", "300 MB of blocks, nine runs of ten freed", RETENTION, |s| {
        let mut blocks = blocks(300 << 10, 1000);
        free(s, &mut blocks, |n| n / 1000 % 10 > 0)?;
        keep(s, blocks)
    })
    .needs(GLIBC),
    Case::process(
        "innocent/trimmed-already",
        "300 MB freed and trimmed, which mallinfo still calls free",
        INNOCENT,
        |s| {
            let mut blocks = blocks(300 << 10, 1000);
            blocks.drain(..blocks.len() - 1);
            sys::malloc_trim();
            s.hold(blocks);
            let rss = procfs::status(own())?.bytes("RssAnon")?;
            s.at_most("rss_anon", rss, Bytes::from_mib(32))
        },
    )
    .needs(GLIBC),
    Case::process(
        "heap-fragmentation/three-of-four",
        "300 MB of small blocks, three of four freed",
        is("heap-fragmentation").near("freed", 10),
        |s| {
            let mut blocks = blocks(600 << 10, 500);
            free(s, &mut blocks, |n| n % 4 > 0)?;
            keep(s, blocks)
        },
    )
    .needs(GLIBC),
    Case::process(
        "heap-fragmentation/every-second",
        "400 MB of small blocks, every second freed",
        is("heap-fragmentation").near("freed", 10),
        |s| {
            let mut blocks = blocks(1 << 20, 400);
            free(s, &mut blocks, |n| n % 2 > 0)?;
            keep(s, blocks)
        },
    )
    .needs(GLIBC),
    Case::process(
        "arena-multiplication/in-turn",
        "16 threads that freed 32 MB each, one after the other",
        is("arena-multiplication"),
        |s| arenas(s, false, Bytes::from_mib(32)),
    )
    .needs(GLIBC),
    Case::process(
        "arena-multiplication/at-once",
        "16 threads that freed 24 MB each, all at once",
        is("arena-multiplication"),
        |s| arenas(s, true, Bytes::from_mib(24)),
    )
    .needs(GLIBC),
    Case::process(
        "arena-multiplication/tops",
        "8 threads that freed all of 20 MB: tops of arenas, which no trim cuts",
        is("arena-multiplication"),
        tops,
    )
    .needs(GLIBC),
    Case::process(
        "undetermined/emptied",
        "a list that held 400 MB and kept its room, looked at once",
        is("undetermined").or(&[Some("capacity-slack")]),
        |s| {
            let mut list = vec![[1u64; 8]; 400 << 14];
            list.clear();
            keep(s, list)
        },
    )
    .needs(GLIBC),
    Case::process("capacity-slack/queue", "a queue that held 400 MB and serves ten", SLACK, queue)
        .needs(GLIBC)
        .watch_use(12),
    Case::process("innocent/table-in-use", "400 MB of a table that is read here and there", INNOCENT, table)
        .needs(GLIBC)
        .watch_use(12),
    Case::process("capacity-slack/dict-emptied", "a dict of millions, emptied to ten entries", SLACK, |s| {
        let (pid, said) = programs::heap(s, Language::Python, "emptied", Bytes::from_mib(160))?;
        s.bytes("slack", figure(&said, "table")?);
        resident(s, pid, Bytes::from_mib(120))
    })
    .needs(PYTHON)
    .watch_use(12),
    Case::process(
        "allocator-retention/bytearrays",
        "a Python list of bytearrays, dropped but for the last",
        is("allocator-retention"),
        |s| {
            let (pid, _) = programs::heap(s, Language::Python, "bytearrays", Bytes::from_mib(300))?;
            resident(s, pid, Bytes::from_mib(250))
        },
    )
    .needs(PYTHON),
    Case::process(
        "gc-headroom/lua-garbage",
        "200 MB of Lua garbage that no cycle has found",
        is("gc-headroom").near("garbage", 10),
        |s| {
            let (pid, said) = programs::heap(s, Language::Lua, "garbage", Bytes::from_mib(200))?;
            s.bytes("garbage", figure(&said, "count")? - figure(&said, "live")?);
            resident(s, pid, Bytes::from_mib(150))
        },
    )
    .needs(LUA),
    Case::process(
        "allocator-retention/lua-collected",
        "300 MB of Lua tables, collected but for one in 1000",
        is("allocator-retention"),
        |s| {
            let (pid, said) = programs::heap(s, Language::Lua, "collected", Bytes::from_mib(300))?;
            s.bytes("count", figure(&said, "count")?);
            resident(s, pid, Bytes::from_mib(200))
        },
    )
    .needs(LUA),
    Case::process(
        "allocator-retention/musl",
        "300 MB of buffers on musl's malloc, freed but for one in 31",
        RETENTION,
        |s| {
            let (pid, said) = programs::buffers_on_musl(s, Bytes(300_000_000))?;
            s.bytes("freed", figure(&said, "freed")?);
            resident(s, pid, Bytes::from_mib(250))
        },
    )
    .needs(MUSL),
    Case::process(
        "heap-fragmentation/redis",
        "a Redis of a million keys, seven of eight deleted",
        is("heap-fragmentation"),
        |s| {
            let script = "for i = 0, 999999 do if i % 8 > 0 then redis.call('del', 'key:' .. i) end end";
            let pid = programs::redis(s, 1_000_000, "", script)?;
            resident(s, pid, Bytes::from_mib(150))
        },
    )
    .needs(REDIS),
    Case::process(
        "allocator-retention/redis-emptied",
        "a Redis whose keys were deleted one by one, and whose jemalloc gives nothing back",
        is("allocator-retention"),
        |s| {
            let forever = "dirty_decay_ms:-1,muzzy_decay_ms:-1";
            let script = "for i = 0, 999999 do redis.call('del', 'key:' .. i) end";
            let pid = programs::redis(s, 1_000_000, forever, script)?;
            resident(s, pid, Bytes::from_mib(150))
        },
    )
    .needs(REDIS),
    Case::process(
        "innocent/redis-flushed",
        "a Redis flushed: it has jemalloc purge its arenas then",
        INNOCENT,
        |s| {
            let pid = programs::redis(s, 1_000_000, "", "redis.call('flushall', 'sync')")?;
            let rss = procfs::status(pid)?.bytes("RssAnon")?;
            s.at_most("rss_anon", rss, Bytes::from_mib(40))?;
            s.target(pid);
            Ok(())
        },
    )
    .needs(REDIS),
    Case::process("leak/malloc", "8 MB/s of small blocks that nobody frees", is("leak"), |s| grow(s, true))
        .needs(GLIBC)
        .watch(36),
    Case::process("innocent/malloc-plateau", "a cache that fills up to 40 MB", NO_LEAK, |s| grow(s, false))
        .needs(GLIBC)
        .watch(24),
    Case::process(
        "leak/python-list",
        "a Python list without bound, beside a cache with one",
        is("leak"),
        |s| foreign(s, Language::Python, "leak"),
    )
    .needs(PYTHON)
    .watch(26),
    Case::process(
        "innocent/python-plateau",
        "a Python dict used as a cache that has a bound",
        NO_LEAK,
        |s| foreign(s, Language::Python, "plateau"),
    )
    .needs(PYTHON)
    .watch(24),
    Case::process("leak/lua-table", "a Lua table without bound, beside a cache with one", is("leak"), |s| {
        foreign(s, Language::Lua, "leak")
    })
    .needs(LUA)
    .watch(26),
    Case::process("innocent/lua-plateau", "a Lua table used as a cache that has a bound", NO_LEAK, |s| {
        foreign(s, Language::Lua, "plateau")
    })
    .needs(LUA)
    .watch(24),
];

type Block = Box<[u8]>;

fn own() -> i32 {
    std::process::id() as i32
}

fn blocks(count: usize, bytes: usize) -> Vec<Block> {
    (0..count).map(|n| vec![n as u8 | 1; bytes].into_boxed_slice()).collect()
}

/// Frees the blocks whose index `which` picks, and notes how much that is.
fn free(stage: &mut Stage, blocks: &mut Vec<Block>, which: fn(usize) -> bool) -> Result<()> {
    let (mut n, mut freed) = (0, 0);
    blocks.retain(|block| {
        let goes = which(n);
        n += 1;
        // Each has a header, and sizes are multiples of 16.
        freed += if goes { (block.len() as u64 + 8).next_multiple_of(16) } else { 0 };
        !goes
    });
    ensure!(freed > 0, "nothing was freed");
    stage.bytes("freed", Bytes(freed));
    Ok(())
}

fn keep<T: 'static>(stage: &mut Stage, kept: Vec<T>) -> Result<()> {
    stage.hold(kept);
    resident(stage, own(), Bytes::from_mib(250))
}

/// The target is `pid`, which has at least so much anonymous memory.
fn resident(stage: &mut Stage, pid: i32, least: Bytes) -> Result<()> {
    stage.target(pid);
    let rss = procfs::status(pid)?.bytes("RssAnon")?;
    stage.at_least("rss_anon", rss, least)
}

fn figure(said: &serde_json::Value, key: &str) -> Result<Bytes> {
    said[key].as_u64().map(Bytes).with_context(|| format!("the program said no {key}: {said}"))
}

/// Every thread fills its own arena, frees all below its last block, and lives on. One after the other each finds
/// an arena of its own, too: one that nobody is attached to.
fn arenas(stage: &mut Stage, at_once: bool, each: Bytes) -> Result<()> {
    const THREADS: usize = 16;
    let filled = Arc::new(Barrier::new(if at_once { THREADS } else { 1 }));
    let freed = Arc::new(Barrier::new(if at_once { THREADS + 1 } else { 2 }));
    for _ in 0..THREADS {
        let (filled, done) = (Arc::clone(&filled), Arc::clone(&freed));
        thread::spawn(move || {
            let mut blocks = blocks((each.0 / 1016) as usize, 1000);
            filled.wait();
            blocks.drain(..blocks.len() - 1);
            done.wait();
            sys::park_with(&blocks)
        });
        if !at_once {
            freed.wait();
        }
    }
    if at_once {
        freed.wait();
    }
    resident(stage, own(), Bytes::from_mib(250))
}

/// Freeing a large block raises the threshold up to which glibc keeps tops (M_TRIM_THRESHOLD is twice the largest
/// block unmapped), and malloc_trim cuts no top but the main arena's.
fn tops(stage: &mut Stage) -> Result<()> {
    const THREADS: usize = 8;
    drop(std::hint::black_box(vec![1u8; 30 << 20]));
    let done = Arc::new(Barrier::new(THREADS + 1));
    for _ in 0..THREADS {
        let done = Arc::clone(&done);
        thread::spawn(move || {
            drop(std::hint::black_box(blocks(20 << 10, 1000)));
            done.wait();
            sys::park()
        });
    }
    done.wait();
    sys::malloc_trim();
    resident(stage, own(), Bytes::from_mib(100))
}

/// Between two steps of work.
const STEP: Duration = Duration::from_millis(20);
/// Steps of work: a minute and a half, several times a watch.
const STEPS: u32 = 4_500;

/// A process that sets up, says ready, works in steps and then rests.
fn work<T>(
    stage: &mut Stage,
    least: Bytes,
    set_up: impl FnOnce() -> Result<T>,
    mut step: impl FnMut(&mut T, u32),
) -> Result<()> {
    let actor = Actor::ready(|line| {
        let mut state = set_up()?;
        line.ready()?;
        for n in 0..STEPS {
            step(&mut state, n);
            thread::sleep(STEP);
        }
        line.park()
    })?;
    let pid = stage.cast(actor);
    resident(stage, pid, least)
}

/// Ten at a time go through a queue of 400 MB, in one place of it; the work is done elsewhere.
fn queue(stage: &mut Stage) -> Result<()> {
    let full = Bytes::from_mib(400);
    stage.bytes("slack", full);
    let set_up = move || {
        let mut queue = VecDeque::from(vec![[1u64; 8]; (full.0 / 64) as usize]);
        queue.clear();
        let mut desk = Region::anon(Bytes::from_mib(4), Kind::Private)?;
        desk.scramble(desk.all(), 1);
        Ok((queue, desk))
    };
    work(stage, full.scaled(0.9), set_up, |(queue, desk), n| {
        queue.extend([[u64::from(n); 8]; 10]);
        desk.scramble(desk.all(), u64::from(n) + 2);
        queue.clear();
    })
}

/// Each step reads every 200th page of it, so that after 200 steps all were read.
fn table(stage: &mut Stage) -> Result<()> {
    let full = Bytes::from_mib(400);
    work(
        stage,
        full.scaled(0.9),
        || Ok(vec![1u64; (full.0 / 8) as usize]),
        |table, n| {
            let pages = table.chunks(PAGE / 8).skip(n as usize % 200).step_by(200);
            std::hint::black_box(pages.filter_map(|page| page.first()).sum::<u64>());
            // A page is read in no time: the rest of a step's work.
            std::hint::black_box((0..200_000u64).fold(0, |sum: u64, n| std::hint::black_box(sum ^ n)));
        },
    )
}

/// A cache that replaces its oldest, and, if it leaks, blocks that nobody frees. The cache fills while it is watched;
/// beside a leak it is full before, because a climb that slows down is rightly left undetermined.
fn grow(stage: &mut Stage, leaks: bool) -> Result<()> {
    const FULL: usize = 80_000;
    let cached = if leaks { FULL } else { 0 };
    let set_up = move || Ok((VecDeque::from(blocks(cached, 500)), Vec::<Block>::new()));
    work(stage, Bytes::ZERO, set_up, move |(cache, leaked), n| {
        cache.extend(blocks(200, 500));
        if cache.len() > FULL {
            cache.drain(..200);
        }
        if leaks {
            leaked.extend(blocks(160, 1000 + n as usize % 8 * 16));
        }
    })
}

fn foreign(stage: &mut Stage, language: Language, state: &str) -> Result<()> {
    let (pid, _) = programs::heap(stage, language, state, Bytes::ZERO)?;
    resident(stage, pid, Bytes::from_mib(1))
}
