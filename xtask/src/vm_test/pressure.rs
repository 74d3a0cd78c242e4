//! The pressure library where this machine must not be made to go: groups of cgroup v2 that the kernel holds up. The
//! guest runs the library's own example in one group for each source, holds the group up until the example says so, and
//! then waits for it to say that it is over.

use super::{Outcome, text};
use crate::vm::{Kernel, Vm};
use crate::workspace::{cargo, run, target};
use anyhow::{Result, ensure};
use ebbtide_observe::Bytes;

/// One group, and what is watched in it.
struct Case {
    group: &'static str,
    /// Run as root before the example starts, with the group's directory as working directory.
    before: &'static str,
    command: &'static str,
    /// What it must choose.
    source: &'static str,
    /// How pressure ends: "sinks" by itself, or the group is "removed", after which another source is taken.
    end: &'static str,
}

const CASES: [Case; 4] = [
    Case {
        group: "root",
        before: "",
        command: "pressure-watch",
        source: "triggers on the own cgroup's PSI (/sys/fs/cgroup/root/memory.pressure)",
        end: "sinks",
    },
    Case {
        group: "service",
        before: "",
        command: "MEMORY_PRESSURE_WATCH=/sys/fs/cgroup/service/memory.pressure \
                  MEMORY_PRESSURE_WRITE=c29tZSAyMDAwMDAgMjAwMDAwMAA= pressure-watch",
        source: "the service manager's PSI file (/sys/fs/cgroup/service/memory.pressure)",
        end: "sinks",
    },
    // A container: nothing may be written.
    Case {
        group: "container",
        before: "",
        command: "su nobody -c pressure-watch",
        source: "a cgroup's memory.events (/sys/fs/cgroup/container/memory.events)",
        end: "removed",
    },
    // A delegated group, as systemd's service of another user. On 5.10 whoever may write a group's file may have any
    // trigger; since 6.4, and on Debian's 6.1, only root may have a window that is no multiple of 2 s.
    Case {
        group: "delegated",
        before: "chown nobody memory.pressure",
        command: "su nobody -c pressure-watch",
        source: "triggers on the own cgroup's PSI (/sys/fs/cgroup/delegated/memory.pressure)",
        end: "sinks",
    },
];

/// Arguments: a case's fields in their order, but for the source. The kernel holds a group up for what it takes above its
/// memory.high; the example itself takes next to nothing. Again and again, because each time it is held up only until it
/// has its buffer. The loop ends first, so that it makes no more of what is then ended: all that is not the example.
const GUEST: &str = r#"
    said() { tries=0; until grep -q "$1" "$out"; do tries=$((tries + 1)); [ $tries -lt 1200 ] || return 1; sleep 0.1; done; }
    cd /sys/fs/cgroup && mkdir "$1" && cd "$1" && out=/tmp/$1
    echo 24M >memory.high
    eval "$2"
    (echo 0 >cgroup.procs; eval "$3 >$out 2>&1") &
    said watching
    pids=$(cat cgroup.procs)
    (echo 0 >cgroup.procs; while :; do dd if=/dev/zero of=/dev/null bs=48M count=1; done) 2>/dev/null &
    said 'onset    [mc]\|rise'
    kill $!
    wait $!
    for pid in $(cat cgroup.procs); do echo "$pids" | grep -qx $pid || kill $pid; done
    if [ "$4" = removed ]; then
        cd ..
        for pid in $pids; do echo $pid >cgroup.procs; done
        until rmdir "$1"; do sleep 0.1; done
    fi
    said release
    kill $pids
    wait
    sed "s/^/$1: /" $out"#;

pub(super) fn check(kernel: Kernel) -> Result<Outcome> {
    run(cargo().args(["build", "--quiet", "--package", "ebbtide-pressure", "--example", "watch"]))?;
    let release = kernel.version().unwrap_or_default().to_owned();
    let cases = CASES.iter().map(|Case { group, before, command, end, .. }| {
        format!("guest {group} '{before}' '{command}' {end} &\n")
    });
    let script = format!("guest() {{ sh /share/guest \"$@\"; }}\n{}wait", cases.collect::<String>());
    let share = crate::workspace::target_dir("vm-pressure")?;
    std::fs::write(share.join("guest"), GUEST)?;
    // By another name, as busybox has a watch of its own.
    let watch = share.join("pressure-watch");
    std::fs::copy(target().join("debug/examples/watch"), &watch)?;
    let vm = Vm::new(kernel).memory(Bytes(1 << 30)).share(&share, "/share");
    let output = vm.program(watch.to_string_lossy()).run(&["sh", "-c", &script])?;
    let said = text(&output);
    for case in &CASES {
        let lines: Vec<&str> =
            said.lines().filter_map(|line| line.strip_prefix(case.group)?.strip_prefix(": ")).collect();
        judge(case, &lines).map_err(|error| error.context(format!("{release}: {said}")))?;
    }
    Ok(Outcome::Passed)
}

/// The right source, then pressure that begins, and its end as the last event.
fn judge(case: &Case, lines: &[&str]) -> Result<()> {
    let source = case.source;
    let first = lines.first().copied().unwrap_or_default();
    ensure!(first == format!("watching: {source}"), "{first:?} instead of {source:?}");
    let events: Vec<&str> = lines.iter().filter(|line| line.contains(" s  ")).copied().collect();
    ensure!(events.first().is_some_and(|event| event.contains("onset")), "began with {:?}", events.first());
    ensure!(
        events.last().is_some_and(|event| event.contains("release  none")),
        "ended with {:?}",
        events.last()
    );
    Ok(())
}
