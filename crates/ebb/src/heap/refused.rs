//! Why a process is not looked into, and what to try next.

use anyhow::anyhow;
use ebbtide_heaps::{Fault, LookError};
use ebbtide_observe::process::{Name, Process, Status};
use ebbtide_observe::{ReadError, Root};
use ebbtide_sys::freeze::FreezeError;
use rustix::process::geteuid;

/// Why `ebb VERB` does not look into process `pid`, whose status is known unless it ended.
pub(crate) fn look(verb: &str, pid: u32, status: Option<&Status>, error: &LookError) -> anyhow::Error {
    match error {
        LookError::Read(ReadError::Vanished { .. }) | LookError::Memory(Fault::Ended) => {
            anyhow!("there is no process {pid}; 'ebb ps' lists them")
        }
        LookError::Read(ReadError::Denied { .. }) | LookError::Memory(Fault::Denied(_)) => {
            let why = denied(status.map(|status| status.uid.effective));
            anyhow!(
                "process {pid} may not be looked into: {error}. {why}{}",
                sudo(&format!("ebb {verb} {pid}"))
            )
        }
        error => anyhow!("process {pid} cannot be looked into: {error}. Try again, or: ebb explain {pid}"),
    }
}

/// Why process `pid` was not stopped.
pub(super) fn freeze(pid: u32, error: FreezeError) -> anyhow::Error {
    let without = format!("Without --freeze it is read while it runs: ebb heap {pid}");
    match error {
        FreezeError::Ended => anyhow!("there is no process {pid}; 'ebb ps' lists them"),
        FreezeError::Traced(tracer) => {
            let name = name(tracer).map(|name| format!(" ({name})")).unwrap_or_default();
            anyhow!("process {pid} is not stopped: process {tracer}{name} traces it already. {without}")
        }
        FreezeError::Denied => {
            let owner = Root::live().and_then(|root| Process::open(&root, pid)?.status());
            let why = denied(owner.ok().map(|status| status.uid.effective));
            let sudo = sudo(&format!("ebb heap {pid} --freeze"));
            anyhow!("process {pid} is not stopped: {error}. {why}{sudo}")
        }
        FreezeError::Stuck(_) | FreezeError::Multiplying | FreezeError::Os(_) => {
            anyhow!("process {pid} is not stopped and runs on: {error}. {without}")
        }
    }
}

fn name(pid: u32) -> Option<Name> {
    Some(Process::open(&Root::live().ok()?, pid).ok()?.status().ok()?.name)
}

/// Why a process of user `owner` may not be looked into by this one.
fn denied(owner: Option<u32>) -> String {
    // Without Yama there is no such file.
    let yama =
        Root::live().and_then(|root| root.read_number("proc/sys/kernel/yama/ptrace_scope")).unwrap_or(0);
    let user = geteuid();
    match owner {
        _ if yama >= 3 => "kernel.yama.ptrace_scope=3 forbids it to everybody until the next boot".to_owned(),
        _ if user.is_root() => {
            "This root lacks CAP_SYS_PTRACE, as in a container. Try it on the host itself".to_owned()
        }
        Some(owner) if owner != user.as_raw() => "It is another user's".to_owned(),
        _ if yama > 0 => format!("kernel.yama.ptrace_scope={yama} leaves that to root"),
        _ => "It has changed its user or runs a program that may not be read".to_owned(),
    }
}

/// What root would type, for those who are not.
fn sudo(command: &str) -> String {
    if geteuid().is_root() { String::new() } else { format!(". As root it goes: sudo {command}") }
}
