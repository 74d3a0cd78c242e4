//! States that run, come and go, end and are damaged while they are read.

use super::{Host, OPENRESTY, PLAIN, burst, totals};
use ebbtide_heaps::{Fault, Heap, Image, Live, MemorySource, Reader, luajit};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use std::io::Read;

/// A heap of process `pid`, which is not stopped.
fn look_running(pid: u32) -> Result<Vec<Heap>, Fault> {
    let process = Process::open(&Root::live().unwrap(), pid).unwrap();
    let live = Live::new(&process, false).map_err(|_| Fault::Ended)?;
    luajit::find_with_ranges(&live)
}

#[test]
fn states_that_run_meanwhile() {
    let Some(mut host) = Host::start(OPENRESTY, 4) else { return };
    let pid = host.0.pid();
    let work = "
        S = S or {}
        for i = 1, 3000 do
            S[math.random(4000)] = { i, string.rep('x', math.random(300)), { tostring(i) } }
            if i % 500 == 0 then S[math.random(4000)] = string.rep('y', math.random(300000)) end
        end";
    for state in 0..2 {
        host.run(state, work);
        host.0.ask(&format!("spin {state} {}", work.replace('\n', " ")));
    }
    let (mut rereads, mut torn, mut unresolved, mut most) = (0, 0, Bytes::ZERO, 0.0_f64);
    let (mut live, mut total) = (Bytes::ZERO, Bytes::ZERO);
    let rounds = 60;
    for round in 0..rounds {
        // Now and then a state comes, works and goes.
        if round % 15 == 7 {
            let state: usize = host.0.ask("new").parse().unwrap();
            host.run(state, &burst(4000));
            host.0.ask(&format!("close {state}"));
        }
        let heap = look_running(pid).unwrap().pop().unwrap();
        assert_eq!(heap.corruptions, [], "round {round}");
        assert!(heap.arenas.iter().filter(|arena| arena.collector.is_some()).count() >= 4, "{heap:#?}");
        let figures = heap.figures;
        assert_eq!(figures.mapped, figures.live + figures.free + figures.metadata + figures.unused);
        assert_eq!(figures.unused, heap.certainty.unresolved);
        total += totals(&heap).into_iter().sum();
        live += figures.live;
        rereads += heap.certainty.reread;
        torn += u64::from(heap.certainty.unresolved > Bytes::ZERO);
        unresolved += heap.certainty.unresolved;
        most = most.max(heap.certainty.unresolved.share_of(figures.mapped));
    }
    println!(
        "{rounds} walks: {rereads} spots read again, {torn} walks with something unresolved, {unresolved} in all, at most {:.1}%",
        100.0 * most
    );
    // Blocks that were mapped since the mappings were listed are missed, and the collectors say their totals a moment later.
    assert!(live > total.scaled(0.25) && live < total.scaled(2.0), "{live} of {total}");
    for state in 0..2 {
        assert_eq!(host.0.ask(&format!("stop {state}")), "nil");
    }
    assert_eq!(host.heap().unwrap().corruptions, []);
}

#[test]
fn a_process_that_ends_meanwhile() {
    let mut ended = 0;
    for round in 0..40_u64 {
        let Some(mut host) = Host::start(OPENRESTY, 2) else { return };
        host.run(0, &burst(2000));
        let pid = host.0.pid();
        let process = Process::open(&Root::live().unwrap(), pid).unwrap();
        let Ok(live) = Live::new(&process, false) else { continue };
        let killer = std::thread::spawn(move || {
            for _ in 0..round * 20_000 {
                std::hint::spin_loop();
            }
            drop(host);
        });
        match luajit::find(&live) {
            Ok(_) => {}
            Err(Fault::Ended) => ended += 1,
            Err(fault) => panic!("{fault}"),
        }
        killer.join().unwrap();
        // Once it is gone there is nothing, and no error but that.
        assert!(matches!(luajit::find(&live), Ok(_) | Err(Fault::Ended)));
    }
    println!("ended under the walk: {ended} of 40");
}

/// Real states, damaged in many ways: never a panic, never figures that do not add up.
#[test]
fn a_real_picture_damaged() {
    let Some(mut host) = Host::start(PLAIN, 2) else { return };
    for state in 0..2 {
        host.run(state, &burst(3000));
        host.run(state, "L = string.rep('large', 40000) collectgarbage()");
    }
    let process = Process::open(&Root::live().unwrap(), host.0.pid()).unwrap();
    let live = Live::new(&process, true).unwrap();
    let whole = luajit::find(&live).unwrap().pop().unwrap();
    let mut picture = Image::of(&live, |area| area.is_unnamed()).unwrap();
    let library = live.areas().iter().find(|area| area.perms.exec && area.path.ends_with(b"2.1.0")).unwrap();
    let mut content = Vec::new();
    live.file(library).unwrap().read_to_end(&mut content).unwrap();
    Image::file(&mut picture, &library.path, content);
    assert_eq!(luajit::find(&picture).unwrap(), std::slice::from_ref(&whole));
    let mut seed = 88_172_645_463_325_252_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let (mut told, mut unnoticed) = (0, 0);
    let mut reader = Reader::new(&picture);
    for _ in 0..100 {
        let mut damaged = picture.clone();
        for _ in 0..1 + random(6) {
            let claim = &whole.claims[random(whole.claims.len() as u64) as usize];
            let mut address = claim.start + random((claim.end - claim.start) / 8) * 8;
            if random(2) == 0 {
                // What looks like a chunk's header more often is one than not.
                let is_header = |word: u64| (32..8192).contains(&word) && matches!(word & 7, 1..=3);
                let next =
                    (address..claim.end - 8).step_by(8).find(|&at| reader.u64(at).is_ok_and(is_header));
                address = next.unwrap_or(address);
            }
            let value = match random(4) {
                0 => 0,
                1 => random(u64::MAX),
                2 => claim.start + random(claim.end - claim.start),
                _ => random(4096),
            };
            damaged.patch(address, &value.to_le_bytes());
        }
        for heap in luajit::find(&damaged).unwrap() {
            let figures = heap.figures;
            assert_eq!(figures.mapped, figures.live + figures.free + figures.metadata + figures.unused);
            assert_eq!(figures.unused, heap.certainty.unresolved);
            // What was lost was also told.
            assert!(figures.unused == Bytes::ZERO || !heap.corruptions.is_empty());
            told += u64::from(!heap.corruptions.is_empty());
            unnoticed += u64::from(heap.corruptions.is_empty());
        }
    }
    println!("100 damaged pictures: {told} told as damaged, {unnoticed} hit only what the program wrote");
}
