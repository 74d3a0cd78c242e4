//! Runs qemu and listens to its guest: four serial ports on socket pairs (console; standard output; standard
//! error; requests to the host) and qemu's own control channel on its standard input and output. Sockets
//! need no paths, so a killed run leaves none; setpriv ends qemu when this process dies.

use super::{Output, Vm};
use anyhow::{Context, Result};
use ebbtide_observe::Bytes;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How many last lines an error shows, and how much of each.
const LAST_LINES: usize = 30;
const LAST_COLUMNS: usize = 160;

/// What the kernel says of a breakpoint that it takes for a stray one; newer ones say "Oops: " before it. Only the first
/// oops of a kernel has the number 1.
const STRAY: &str = "int3: 0000 [#1]";

/// A guest ended by what only emulation does to its kernel: where that patches its own code (static keys, as
/// inet_ehashfn's), another emulated processor may still run the breakpoint after the patch is done, which the kernel
/// takes for a stray one (seen on 6.12 under qemu 7.2's TCG). For people, as any other error.
#[derive(Debug)]
pub(super) struct Breakpoint(String);

impl std::fmt::Display for Breakpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Breakpoint {}

/// What the listeners tell the waiting run.
enum Event {
    /// The guest's command ended, with this code.
    Ended(i32),
    /// The guest's standard output was closed without an end mark: qemu is gone.
    Gone,
}

/// Boots `vm` on `initramfs` and waits for the line with `mark`.
pub(super) fn run(vm: &Vm, initramfs: &[u8], mark: &str) -> Result<Output> {
    let initrd = unnamed(Bytes(0))?;
    (&initrd).write_all(initramfs).context("cannot write the initramfs")?;
    let disks = [vm.swap, vm.disk].into_iter().flatten().map(unnamed).collect::<Result<Vec<_>>>()?;
    // Made without close-on-exec, because qemu inherits its ends by number.
    let pairs = (0..4)
        .map(|_| socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None))
        .collect::<rustix::io::Result<Vec<_>>>()?;
    let (ours, theirs): (Vec<OwnedFd>, Vec<OwnedFd>) = pairs.into_iter().unzip();
    for fd in &ours {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    }
    let mut command = command_line(vm, &initrd, &disks, &theirs);
    let mut qemu = command.spawn().context("cannot start qemu-system-x86_64 (package qemu-system-x86)")?;
    drop((theirs, initrd, disks));
    let [console, stdout, stderr, host] = <[OwnedFd; 4]>::try_from(ours)
        .map(|fds| fds.map(File::from))
        .ok()
        .context("four sockets were made")?;
    let control = qemu.stdin.take().zip(qemu.stdout.take());

    let (tell, told) = channel();
    std::thread::scope(|scope| {
        let console = scope.spawn(|| collect(console, None));
        let stderr = scope.spawn(|| collect(stderr, vm.stream.then(|| Box::new(std::io::stderr()) as Sink)));
        let stdout = scope.spawn(|| collect_marked(stdout, mark, vm.stream, &tell));
        scope.spawn(|| serve(host, control, vm));
        let ended = wait(&told, vm.timeout);
        let stopped = stop(&mut qemu);
        let gather = |thread: std::thread::ScopedJoinHandle<'_, Vec<u8>>| thread.join().unwrap_or_default();
        let (console, stdout, stderr) = (gather(console), gather(stdout), gather(stderr));
        stopped?;
        match ended {
            Ok(status) => Ok(Output { status, stdout, stderr, console }),
            Err(why) => Err(failure(epitaph(&why, &stdout, &stderr, &console), &console)),
        }
    })
}

/// A file without a name that holds `size` bytes of zeros, sparsely; inheritable.
fn unnamed(size: Bytes) -> Result<File> {
    use rustix::fs::{Mode, OFlags};
    let path = crate::workspace::target_dir("vm")?.join(format!("unnamed.{}", std::process::id()));
    let why = || format!("cannot make {}", path.display());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).with_context(why)?;
    std::fs::remove_file(&path).with_context(why)?;
    rustix::fs::ftruncate(&fd, size.0).with_context(why)?;
    Ok(File::from(fd))
}

fn command_line(vm: &Vm, initrd: &File, disks: &[File], ports: &[OwnedFd]) -> Command {
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-nodefaults", "-no-user-config"]);
    qemu.args(["-display", "none", "-no-reboot", "-qmp", "stdio"]);
    qemu.arg("-m").arg(format!("{}K", vm.memory.0 >> 10)).arg("-smp").arg(vm.cpus.to_string());
    qemu.arg("-kernel").arg(&vm.kernel.image).arg("-initrd").arg(format!("/dev/fd/{}", initrd.as_raw_fd()));
    // loglevel=4 keeps panics, oopses and OOM kills, which are errors, and drops the boot's chatter. On a busy
    // host the boot's check of the emulated timer can fail although the timer works.
    let cmdline = format!("console=ttyS0 panic=-1 oops=panic psi=1 loglevel=4 no_timer_check{}", vm.cmdline);
    qemu.args(["-append", cmdline.trim()]);
    // The third and fourth port usually share the interrupts of the first two: they get free ones instead.
    for (index, (port, irq)) in ports.iter().zip([4, 3, 5, 7]).enumerate() {
        qemu.arg("-chardev").arg(format!("socket,id=port{index},fd={}", port.as_raw_fd()));
        qemu.arg("-device").arg(format!("isa-serial,index={index},irq={irq},chardev=port{index}"));
    }
    for (index, disk) in disks.iter().enumerate() {
        let file = format!("file=/dev/fd/{},format=raw,cache=unsafe,discard=unmap", disk.as_raw_fd());
        qemu.arg("-drive").arg(format!("if=none,id=disk{index},{file}"));
        qemu.arg("-device").arg(format!("virtio-blk-pci,drive=disk{index}"));
    }
    if vm.balloon {
        qemu.args(["-device", "virtio-balloon-pci"]);
    }
    qemu.stdin(Stdio::piped()).stdout(Stdio::piped());
    qemu
}

/// Waits for the guest's command to end; an error says why it did not.
fn wait(told: &Receiver<Event>, timeout: Duration) -> Result<i32, String> {
    let deadline = Instant::now() + timeout;
    match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(Event::Ended(status)) => Ok(status),
        Ok(Event::Gone) | Err(RecvTimeoutError::Disconnected) => {
            Err("the virtual machine stopped before its command ended".to_owned())
        }
        Err(RecvTimeoutError::Timeout) => {
            Err(format!("the virtual machine did not end within {} s and was stopped", timeout.as_secs()))
        }
    }
}

fn stop(qemu: &mut Child) -> Result<()> {
    qemu.kill().context("cannot stop qemu")?;
    qemu.wait().context("cannot wait for qemu")?;
    Ok(())
}

/// `epitaph` as an error, which says whether the guest's kernel ended by emulation alone.
fn failure(epitaph: String, console: &[u8]) -> anyhow::Error {
    match String::from_utf8_lossy(console).contains(STRAY) {
        true => Breakpoint(epitaph).into(),
        false => anyhow::Error::msg(epitaph),
    }
}

/// Why a run failed, for people: what the console names as the cause, and the last lines of everything.
fn epitaph(why: &str, stdout: &[u8], stderr: &[u8], console: &[u8]) -> String {
    // Older kernels call only some oopses that.
    let telling = ["Kernel panic", "Out of memory: Killed", "BUG: ", "Oops", "[#1]"];
    let mut text = why.to_owned();
    let said = String::from_utf8_lossy(console);
    if let Some(line) = said.lines().find(|line| telling.iter().any(|word| line.contains(word))) {
        text += &format!("\nits kernel says: {}", line.trim());
    }
    for (name, bytes) in [("standard output", stdout), ("standard error", stderr), ("console", console)] {
        let said = String::from_utf8_lossy(bytes);
        let lines: Vec<&str> = said.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        for (n, line) in lines[lines.len().saturating_sub(LAST_LINES)..].iter().enumerate() {
            let line: String = line.chars().take(LAST_COLUMNS).collect();
            text += &if n == 0 {
                format!("\nlast lines of its {name}:\n  {line}")
            } else {
                format!("\n  {line}")
            };
        }
    }
    text
}

type Sink = Box<dyn Write>;

/// Reads `from` to its end, passing it on to `sink` as it comes.
fn collect(mut from: File, mut sink: Option<Sink>) -> Vec<u8> {
    let (mut all, mut block) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = from.read(&mut block) {
        pass_on(&mut sink, &block[..n]);
        all.extend_from_slice(&block[..n]);
    }
    all
}

fn pass_on(sink: &mut Option<Sink>, bytes: &[u8]) {
    if let Some(out) = sink
        && out.write_all(bytes).and_then(|()| out.flush()).is_err()
    {
        // A reader that went away (`| head`) ends the passing on, not the run.
        *sink = None;
    }
}

/// As [`collect`], up to the end mark, which is told and not passed on.
fn collect_marked(mut from: File, mark: &str, stream: bool, tell: &Sender<Event>) -> Vec<u8> {
    let mut sink = stream.then(|| Box::new(std::io::stdout()) as Sink);
    let start = format!("\x1e{mark} ");
    let (mut all, mut passed, mut block) = (Vec::new(), 0, [0; 4096]);
    let event = loop {
        match from.read(&mut block) {
            Ok(n @ 1..) => all.extend_from_slice(&block[..n]),
            _ => break Event::Gone,
        }
        let (clean, status) = split(&all, passed, start.as_bytes());
        pass_on(&mut sink, &all[passed..clean]);
        passed = clean;
        if let Some(status) = status {
            all.truncate(clean);
            break Event::Ended(status);
        }
    };
    // Nobody listens any more when the run was given up meanwhile.
    tell.send(event).ok();
    all
}

/// How much of `all` is output for certain, and the status if the end mark is complete. What lies before
/// `from` was judged before.
fn split(all: &[u8], from: usize, start: &[u8]) -> (usize, Option<i32>) {
    let found = (from..all.len()).find(|&at| {
        let rest = &all[at..];
        rest.starts_with(start) || start.starts_with(rest)
    });
    let Some(at) = found else { return (all.len(), None) };
    let rest = all[at..].get(start.len()..).unwrap_or_default();
    let line = rest.split_last().filter(|(last, _)| **last == b'\n').map(|(_, line)| line);
    (at, line.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()))
}

/// Answers the guest's requests: a number of MiB is what the balloon shall take.
fn serve(host: File, control: Option<(ChildStdin, ChildStdout)>, vm: &Vm) {
    let Some((mut input, output)) = control else { return };
    let mut output = BufReader::new(output).lines();
    let mut ask = |command: serde_json::Value| -> Option<serde_json::Value> {
        writeln!(input, "{command}").ok()?;
        output.by_ref().map_while(Result::ok).find_map(|line| {
            let answer: serde_json::Value = serde_json::from_str(&line).ok()?;
            (answer.get("return").is_some() || answer.get("error").is_some()).then_some(answer)
        })
    };
    if ask(serde_json::json!({"execute": "qmp_capabilities"})).is_none() {
        return;
    }
    let Ok(mut back) = host.try_clone() else { return };
    for line in BufReader::new(host).lines().map_while(Result::ok) {
        let answer = match line.trim().parse::<u64>() {
            Ok(mib) => {
                let left = vm.memory - Bytes::from_kib(mib << 10);
                match ask(serde_json::json!({"execute": "balloon", "arguments": {"value": left.0}})) {
                    Some(answer) if answer.get("return").is_some() => "ok".to_owned(),
                    Some(answer) => answer["error"]["desc"].as_str().unwrap_or("refused").to_owned(),
                    None => return,
                }
            }
            Err(_) => "not a number of MiB".to_owned(),
        };
        if writeln!(back, "{answer}").is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_ends_at_the_mark_alone() {
        let split = |all: &[u8]| split(all, 0, b"\x1eabc ");
        assert_eq!(split(b"text\n"), (5, None));
        assert_eq!(split(b"a \x1eb c"), (6, None));
        assert_eq!(split(b"text\n\x1e"), (5, None));
        assert_eq!(split(b"text\n\x1eabc 1"), (5, None));
        assert_eq!(split(b"text\n\x1eabc 137\n"), (5, Some(137)));
        assert_eq!(split(b"\x1e\x1eabc 0\n"), (1, Some(0)));
    }

    #[test]
    fn an_error_names_what_the_kernel_said() {
        let text =
            epitaph("it stopped", b"", b"", b"[ 1] fine\r\n[ 2] Kernel panic - not syncing: x\r\n\r\n");
        assert!(text.contains("its kernel says: [ 2] Kernel panic"));
        assert!(text.ends_with("[ 2] Kernel panic - not syncing: x"));
    }

    #[test]
    fn only_a_stray_breakpoint_is_the_emulators() {
        let failed =
            |console: &str| failure(epitaph("it stopped", b"", b"", console.as_bytes()), console.as_bytes());
        for line in [
            "[    3.1] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI",
            "[    3.1] int3: 0000 [#1] SMP NOPTI",
            "[    3.1] int3: 0000 [#1] PREEMPT SMP NOPTI",
        ] {
            let console = format!("[    2.0] fine\r\n{line}\r\n[    3.2] RIP: 0010:inet_ehashfn+0x1/0x1\r\n");
            let error = failed(&console);
            assert!(
                error.is::<Breakpoint>() && error.to_string().contains(&format!("its kernel says: {line}"))
            );
        }
        for line in [
            "[    3.1] general protection fault: 0000 [#1] SMP NOPTI",
            "[    3.1] Oops: 0002 [#1] SMP NOPTI",
            "[    3.1] Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#1] SMP",
            "[    3.1] invalid opcode: 0000 [#1] SMP NOPTI",
            "[    3.1] Kernel panic - not syncing: sysrq triggered crash",
        ] {
            let later = format!("{line}\r\n[    3.2] int3: 0000 [#2] SMP NOPTI\r\n");
            let error = failed(&later);
            assert!(!error.is::<Breakpoint>(), "{line}");
            assert!(error.to_string().contains(&format!("its kernel says: {line}")), "{error}");
        }
    }
}
