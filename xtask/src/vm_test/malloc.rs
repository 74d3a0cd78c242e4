//! The preloaded malloc where this machine must not be made to go: strict overcommit, a cgroup's memory limit (v2), and
//! memory pressure. The guest runs `crates/malloc-preload/tests/c/quirks.cc`, which says what each name does.

use super::{Outcome, text};
use crate::vm::{Kernel, Vm};
use crate::workspace::{build_release, root, run, target_dir};
use anyhow::{Result, ensure};
use ebbtide_observe::Bytes;
use std::process::Command;

/// Without pressure "pressed" must fail, or its success under pressure would say nothing; once will do, as a busy machine
/// may make memory short by itself for a while. The pressure is that of other processes, which the kernel holds up for
/// what they take above their cgroup's memory.high: "pressed" itself must go on as it did. So it is the host's, and not
/// its own cgroup's. One after another, because each is held up only until it has its buffer, some three seconds.
const SCRIPT: &str = r#"
    quirk() { LD_PRELOAD=/share/libebbtide_malloc_preload.so quirks "$@"; }
    echo 2 >/proc/sys/vm/overcommit_memory
    echo "overcommit: $(quirk exhaust) $(quirk bursts) $(quirk mappings)"
    echo 0 >/proc/sys/vm/overcommit_memory
    group=/sys/fs/cgroup/limited
    mkdir $group
    echo 96M >$group/memory.max
    echo "limit: $(echo 0 >$group/cgroup.procs; quirk bursts) $(grep -w oom_kill $group/memory.events)"
    for try in 1 2 3; do quirk pressed 2>/dev/null || { echo "calm: nothing"; break; }; done
    echo 8M >$group/memory.high
    (echo 0 >$group/cgroup.procs; while :; do dd if=/dev/zero of=/dev/null bs=64M count=1; done) 2>/dev/null &
    echo "pressure: $(quirk pressed)"
    kill $!"#;

pub(super) fn check(kernel: Kernel) -> Result<Outcome> {
    let share = target_dir("vm-malloc")?;
    let library = "libebbtide_malloc_preload.so";
    std::fs::copy(build_release(&["ebbtide-malloc-preload"])?.join(library), share.join(library))?;
    let program = target_dir("bench-malloc")?.join("quirks");
    let source = root().join("crates/malloc-preload/tests/c/quirks.cc");
    run(Command::new("g++").args(["-O1", "-pthread", "-w", "-fno-builtin", "-o"]).arg(&program).arg(source))?;
    let vm = Vm::new(kernel).memory(Bytes(1 << 30)).share(&share, "/share");
    let output = vm.program(program.to_string_lossy()).run(&["sh", "-c", SCRIPT])?;
    let said = text(&output);
    for line in ["overcommit: ok ok ok", "limit: ok oom_kill 0", "calm: nothing", "pressure: ok"] {
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(said.lines().any(|said| said == line), "no {line:?} in {said}{stderr}");
    }
    Ok(Outcome::Passed)
}
