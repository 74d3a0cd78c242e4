//! A thread borrowed for a call, and given back as it was.

use super::BorrowError;
use super::frame::{self, Frame};
use super::requests::{
    Registers, has_shadow_stack, mask, plain, registers, send, set_mask, set_registers, set_xstate, wait,
    xstate,
};
use crate::freeze::Stopped;
use crate::remote;
use rustix::io::Errno;
use rustix::process::Pid;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::marker::PhantomData;
use std::ops::Range;
use std::time::{Duration, Instant};

/// rt_sigreturn's number.
const SIGRETURN: u64 = 15;
/// `mov $15, %rax; syscall`: what the restorer is.
const RESTORER: u64 = 9;
/// __USER_CS.
const CODE_64: u64 = 0x33;
/// The direction flag, which functions want to be clear, and the trap flag.
const DIRECTION_AND_TRAP: u64 = 0x500;
/// What the kernel answers to a system call that it will restart (linux/errno.h): ERESTARTSYS and ERESTARTNOINTR; and
/// those that end when a signal was handled, ERESTARTNOHAND and ERESTART_RESTARTBLOCK.
const RESTART: [i64; 2] = [-512, -513];
const RESTART_UNLESS_HANDLED: i64 = -514;
const RESTART_WITH_BLOCK: i64 = -516;
const EINTR: i64 = -4;
/// The length of a `syscall` instruction.
const SYSCALL: u64 = 2;
/// orig_rax of a thread that is in no system call.
const NO_CALL: u64 = u64::MAX;
/// SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS: the kernel forces them through a mask, and takes the handler away.
const FAULTS: u64 = 1 << (4 - 1) | 1 << (5 - 1) | 1 << (7 - 1) | 1 << (8 - 1) | 1 << (11 - 1) | 1 << (31 - 1);
/// PTRACE_O_SUSPEND_SECCOMP (linux/ptrace.h).
const SUSPEND_SECCOMP: i32 = 1 << 21;
/// Ignored unless somebody catches them (signal(7)), and rarely caught.
const BELLS: [i32; 2] = [libc::SIGURG, libc::SIGWINCH];
/// Room for what the function puts on the stack itself.
const ROOM: u64 = 16 << 10;
/// Room for what a system call reads.
const SCRATCH: u64 = 8 << 10;
/// Between two looks whether it has come further.
const PAUSE: Duration = Duration::from_micros(10);
/// How long a step takes that does no work: until then it is waited for, also after the patience ended.
const STEP: Duration = Duration::from_secs(1);

/// A stopped thread that makes calls. It cannot leave the tracing thread, as the [`Stopped`] it is from.
pub struct Borrowed<'t> {
    stopped: PhantomData<&'t Stopped<'t>>,
    pid: Pid,
    tid: u32,
    saved: Registers,
    mask: u64,
    /// As PTRACE_GETREGSET gave it.
    xstate: Vec<u8>,
    frame: Frame,
    restorer: u64,
    whereabouts: Whereabouts,
    /// Whether SIGSTOP came to it meanwhile, which no mask holds back.
    stop_later: bool,
}

/// Where a borrowed thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whereabouts {
    /// Where it stood.
    Back,
    /// In a call.
    Away,
    /// At a signal's handler: it has gone on by itself.
    Gone,
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if self.stop_later {
            // It may have ended.
            let _ = send(self.pid, self.tid, libc::SIGSTOP);
        }
    }
}

impl<'t> Borrowed<'t> {
    /// Borrows thread `tid` of those stopped. `restorer` is the address of `mov $15, %rax; syscall` in the target, and
    /// `stack` what is mapped of the stack it is on.
    ///
    /// With `unfiltered`, its seccomp filter is suspended for as long as it is traced (PTRACE_O_SUSPEND_SECCOMP: Linux 4.3
    /// and later with CONFIG_CHECKPOINT_RESTORE, CAP_SYS_ADMIN). A filter that does not know a system call may end the
    /// process for it, so that killing this tracer before the thread has entered its call is not harmless then.
    pub fn borrow(
        stopped: &'t Stopped<'_>,
        tid: u32,
        restorer: u64,
        stack: Range<u64>,
        unfiltered: bool,
    ) -> Result<Borrowed<'t>, BorrowError> {
        let saved = registers(tid)?;
        if saved.cs != CODE_64 {
            return Err(BorrowError::Narrow);
        }
        if has_shadow_stack(tid) {
            return Err(BorrowError::ShadowStack);
        }
        let (mask, xstate) = (mask(tid)?, xstate(tid)?);
        let room = xstate.len() as u64 + 2 * ROOM + SCRATCH;
        if !stack.contains(&saved.rsp) || saved.rsp - stack.start < room {
            return Err(BorrowError::NoRoom);
        }
        let frame = frame::frame(&resumed(&saved), &xstate, mask, saved.rsp, restorer);
        let suspend = if unfiltered { SUSPEND_SECCOMP } else { 0 };
        match plain(libc::PTRACE_SETOPTIONS, tid, libc::PTRACE_O_TRACESYSGOOD | suspend) {
            Err(Errno::PERM | Errno::INVAL) if unfiltered => return Err(BorrowError::Filtered),
            set => set?,
        }
        let pid = i32::try_from(stopped.pid()).ok().and_then(Pid::from_raw).ok_or(BorrowError::Ended)?;
        remote::write(pid, frame.at, &frame.bytes).map_err(Errno::from)?;
        let (whereabouts, stop_later) = (Whereabouts::Back, false);
        Ok(Borrowed {
            stopped: PhantomData,
            pid,
            tid,
            saved,
            mask,
            xstate,
            frame,
            restorer,
            whereabouts,
            stop_later,
        })
    }

    /// Where it stood: its instruction and stack pointers.
    pub fn stood(&self) -> (u64, u64) {
        (self.saved.rip, self.saved.rsp)
    }

    /// Calls the function at `function`, and waits until it has returned, but no longer than `patience`.
    ///
    /// It runs undisturbed where a signal that nobody sees can say that it has returned; else each of its system calls
    /// is waited for (two stops of about 10 us). On [`BorrowError::Late`] the thread is let go within the call and takes
    /// itself back.
    pub fn call(&mut self, function: u64, args: [u64; 6], patience: Duration) -> Result<(), BorrowError> {
        self.leave(function, 0, args)?;
        match self.bell() {
            Some(bell) => self.listen(bell, patience),
            None => self.follow(patience).map(drop),
        }
    }

    /// Makes one system call through `gate`: the address of a `syscall` instruction after which the function that it is
    /// in returns.
    pub fn system_call(
        &mut self,
        gate: u64,
        number: u64,
        args: [u64; 6],
        patience: Duration,
    ) -> Result<i64, BorrowError> {
        self.leave(gate, number, args)?;
        let calls = self.follow(patience)?;
        calls.first().map(|&(_, result)| result).ok_or(BorrowError::Os(Errno::IO))
    }

    /// Writes `bytes`, at most 8 KiB, below the frame, for a system call to read; their address. A function's stack
    /// would overwrite them.
    pub fn scratch(&self, bytes: &[u8]) -> Result<u64, BorrowError> {
        if bytes.len() as u64 > SCRATCH {
            return Err(BorrowError::NoRoom);
        }
        self.write((self.frame.at - SCRATCH - ROOM) & !15, bytes)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<u64, BorrowError> {
        remote::write(self.pid, at, bytes).map_err(Errno::from)?;
        Ok(at)
    }

    /// Writes `bytes`, at most 128, behind the frame, for a function to read and write; their address. What it wrote
    /// there is there until the thread is let go.
    pub fn beside(&self, bytes: &[u8]) -> Result<u64, BorrowError> {
        if bytes.len() as u64 > frame::TEXT {
            return Err(BorrowError::NoRoom);
        }
        self.write(self.frame.text, bytes)
    }

    /// Sends the thread to `function`. From here on it comes back by itself.
    fn leave(&mut self, function: u64, rax: u64, args: [u64; 6]) -> Result<(), BorrowError> {
        match self.whereabouts {
            Whereabouts::Back => {}
            Whereabouts::Away => return Err(BorrowError::Late),
            Whereabouts::Gone => return Err(BorrowError::Signalled),
        }
        let [rdi, rsi, rdx, fourth, r8, r9] = args;
        let registers = Registers {
            rip: function,
            rsp: self.frame.at,
            rax,
            orig_rax: NO_CALL,
            rdi,
            rsi,
            rdx,
            // A function's fourth argument, and a system call's.
            rcx: fourth,
            r10: fourth,
            r8,
            r9,
            eflags: self.saved.eflags & !DIRECTION_AND_TRAP,
            ..self.saved
        };
        set_registers(self.tid, &registers)?;
        self.whereabouts = Whereabouts::Away;
        // After the registers: the frame gives the mask back.
        Ok(set_mask(self.tid, !FAULTS)?)
    }

    /// Has a signal wait for the thread until it has taken itself back, which unblocks it: one that it would get, and
    /// that is ignored, so that nothing comes of it if this tracer is gone by then. None for a thread whose system call
    /// only the kernel can restart: taking itself back, it would lose the rest of its time-out.
    fn bell(&self) -> Option<i32> {
        if self.saved.rax as i64 == RESTART_WITH_BLOCK {
            return None;
        }
        let seen = self.mask | caught(self.pid)?;
        let bell = BELLS.into_iter().find(|bell| seen >> (bell - 1) & 1 == 0)?;
        send(self.pid, self.tid, bell).ok().map(|()| bell)
    }

    /// Waits until the thread has taken itself back, which `bell` says.
    fn listen(&mut self, bell: i32, patience: Duration) -> Result<(), BorrowError> {
        let deadline = Instant::now() + patience;
        let mut hand_on = 0;
        loop {
            plain(libc::PTRACE_CONT, self.tid, hand_on)?;
            let status = self.next(deadline)?;
            let (signal, is_event) = (libc::WSTOPSIG(status), status >> 16 != 0);
            hand_on = 0;
            if is_event {
                // The process is stopped by SIGSTOP: it stops as soon as it is let go.
            } else if signal == libc::SIGSTOP {
                self.stop_later = true;
            } else if self.whereabouts == Whereabouts::Away && FAULTS >> (signal - 1) & 1 == 1 {
                self.put_back()?;
                return Err(BorrowError::Faulted(signal));
            } else {
                if self.whereabouts == Whereabouts::Away {
                    // Before the kernel decides whether its system call is made again.
                    set_registers(self.tid, &self.saved)?;
                    self.whereabouts = Whereabouts::Back;
                }
                if signal == bell {
                    return Ok(());
                }
                // It waited for the end of the call, as the bell did.
                hand_on = signal;
                self.whereabouts = Whereabouts::Gone;
            }
        }
    }

    /// Follows the thread until it is about to take itself back, and puts it where it stood.
    fn follow(&mut self, patience: Duration) -> Result<Vec<(u64, i64)>, BorrowError> {
        let deadline = Instant::now() + patience;
        let (mut calls, mut entered) = (Vec::new(), None);
        loop {
            plain(libc::PTRACE_SYSCALL, self.tid, 0)?;
            let status = self.next(deadline)?;
            let signal = libc::WSTOPSIG(status);
            if signal == libc::SIGTRAP | 0x80 {
                let now = registers(self.tid)?;
                match entered.take() {
                    None if now.orig_rax == SIGRETURN && now.rip == self.restorer + RESTORER => {
                        self.put_back()?;
                        return Ok(calls);
                    }
                    None => entered = Some(now.orig_rax),
                    Some(number) => calls.push((number, now.rax as i64)),
                }
            } else if status >> 16 != 0 {
                // The process is stopped by SIGSTOP: it stops as soon as it is let go.
            } else if FAULTS >> (signal - 1) & 1 == 1 {
                self.put_back()?;
                return Err(BorrowError::Faulted(signal));
            } else {
                self.stop_later |= signal == libc::SIGSTOP;
            }
        }
    }

    /// Puts the thread, which stands before a rt_sigreturn or a signal, back to where it stood. Each step leaves it so
    /// that it can be let go.
    fn put_back(&mut self) -> Result<(), BorrowError> {
        set_xstate(self.tid, &mut self.xstate)?;
        set_mask(self.tid, self.mask)?;
        // The call that it was about to make is skipped. To restart another is for the kernel, at a stop of the kind
        // that it was found in.
        set_registers(self.tid, &Registers { orig_rax: NO_CALL, ..resumed(&self.saved) })?;
        plain(libc::PTRACE_INTERRUPT, self.tid, 0)?;
        let deadline = Instant::now() + STEP;
        loop {
            plain(libc::PTRACE_CONT, self.tid, 0)?;
            if self.next(deadline)? >> 16 == libc::PTRACE_EVENT_STOP {
                break;
            }
        }
        set_registers(self.tid, &self.saved)?;
        self.whereabouts = Whereabouts::Back;
        Ok(())
    }

    /// The next stop.
    fn next(&self, deadline: Instant) -> Result<libc::c_int, BorrowError> {
        let began = Instant::now();
        loop {
            match wait(self.tid)? {
                Some(status) if libc::WIFSTOPPED(status) => return Ok(status),
                Some(_) => return Err(BorrowError::Ended),
                None if Instant::now() >= deadline => return Err(BorrowError::Late),
                // The longer it takes, the less it is disturbed.
                None => std::thread::sleep(PAUSE.max(began.elapsed() / 8)),
            }
        }
    }
}

/// The signals that process `pid` catches.
fn caught(pid: Pid) -> Option<u64> {
    let file = File::open(format!("/proc/{}/status", pid.as_raw_pid())).ok()?;
    let mut lines = BufReader::new(file).lines().map_while(Result::ok);
    let mask = lines.find_map(|line| line.strip_prefix("SigCgt:").map(str::to_owned))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Where a thread in a system call goes on when nobody puts it back exactly: it makes the call again, or finds it
/// interrupted. What restart_syscall(2) would need is lost by then, and one that waits for a signal shall not go on
/// waiting when that came meanwhile.
fn resumed(saved: &Registers) -> Registers {
    let is_in_call = saved.orig_rax as i64 >= 0;
    match saved.rax as i64 {
        code if is_in_call && RESTART.contains(&code) => {
            Registers { rip: saved.rip - SYSCALL, rax: saved.orig_rax, ..*saved }
        }
        RESTART_UNLESS_HANDLED | RESTART_WITH_BLOCK if is_in_call => {
            Registers { rax: EINTR as u64, ..*saved }
        }
        _ => *saved,
    }
}
