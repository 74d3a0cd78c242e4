//! Real programs with Lua states: luajit, whose LuaJIT is in the program itself, and nginx with the Lua module.

use super::{OPENRESTY, PLAIN, burst, look, rss};
use ebbtide_heaps::Figures;
use ebbtide_observe::Bytes;
use ebbtide_testkit::{Child, Nginx};
use std::path::PathBuf;
use std::process::Command;

#[test]
fn the_luajit_program_itself() {
    // The one that is installed, and those that are unpacked.
    let unpacked = [PLAIN, OPENRESTY].map(|flavour| flavour.tree().map(|tree| tree.join("usr/bin/luajit")));
    for program in unpacked.into_iter().flatten().chain([PathBuf::from("luajit")]) {
        let script = "print('@ready') for line in io.lines() do print('@ready ' .. tostring((loadstring(line)()))) end";
        let mut command = Command::new(&program);
        let Ok(version) = Command::new(&program).arg("-v").output() else {
            println!("skipped: {}: not installed", program.display());
            continue;
        };
        assert!(version.status.success());
        let mut child = Child::spawn(command.args(["-e", "io.stdout:setvbuf('line')", "-e", script]));
        child.ask(&burst(100_000).replace('\n', " "));
        child.ask("collectgarbage() collectgarbage()");
        let before = look(child.pid()).unwrap();
        // The code of the second question is the same as that of the first: it takes as much as it gives back.
        let count = "C = C or {} C[1] = collectgarbage('count') * 1024 return C[1]";
        child.ask(count);
        let total: f64 = child.ask(count).parse().unwrap();
        let found = look(child.pid()).unwrap();
        assert!(
            (found.arenas[0].collector.unwrap().total.0 as f64 - total).abs() < 2048.0,
            "{total} {found:?}"
        );
        let Figures { resident, live, returnable, .. } = before.figures;
        println!(
            "{} {}: {resident} resident, {live} live, {returnable} returnable",
            program.display(),
            found.version.unwrap()
        );
        assert!(returnable > Bytes::from_mib(20) && returnable + live <= resident + Bytes::from_mib(1));
        assert!(before.certainty.still);
    }
}

#[test]
fn nginx_with_lua() {
    let Some(nginx) = Nginx::start() else { return };
    let pid = nginx.pid();
    (0..5).for_each(|_| nginx.burst());
    let (burst, burst_rss) = (look(pid).unwrap(), rss(pid));
    nginx.run("collectgarbage() collectgarbage()");
    let count: f64 = nginx.run("return collectgarbage('count') * 1024").parse().unwrap();
    let (after, after_rss) = (look(pid).unwrap(), rss(pid));
    println!("nginx, LuaJIT {}", after.version.as_deref().unwrap());
    for (when, heap, rss) in [("before", &burst, burst_rss), ("after", &after, after_rss)] {
        let Figures {
            mapped, resident, live, free, returnable, pinned_free, largest_free, free_chunks, ..
        } = heap.figures;
        println!(
            "{when} the collection: RSS {rss}; mapped {mapped}, resident {resident}, live {live}, free {free}, returnable {returnable}, pinned {pinned_free}, largest {largest_free} of {free_chunks}; {}",
            heap.notes[0]
        );
    }
    assert!(burst.figures.live > Bytes::from_mib(50));
    assert!(after.figures.live < Bytes::from_mib(8));
    assert!(after.figures.returnable > Bytes::from_mib(100));
    let total = after.arenas[0].collector.unwrap().total.0 as f64;
    assert!((total - count).abs() < 65536.0, "{total} {count}");
}
