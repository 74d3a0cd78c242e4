//! The ptrace requests that borrowing takes, each as a small safe function. They work only in the thread that traces
//! `tid`, while that stands still.

use crate::call::last_error;
use rustix::io::Errno;
use rustix::process::Pid;

/// NT_X86_XSTATE, NT_X86_SHSTK (linux/elf.h).
const XSTATE: libc::c_int = 0x202;
const SHADOW_STACK: libc::c_int = 0x204;
/// PTRACE_GETSIGMASK, PTRACE_SETSIGMASK (linux/ptrace.h, 3.11).
const GET_MASK: libc::c_uint = 0x420a;
const SET_MASK: libc::c_uint = 0x420b;
/// More than any XSTATE there is (11,008 bytes with AMX).
const XSTATE_MOST: usize = 64 << 10;

pub(crate) type Registers = libc::user_regs_struct;

/// `PTRACE_GETREGS`; the registers of 64-bit code.
pub(crate) fn registers(tid: u32) -> Result<Registers, Errno> {
    // SAFETY: all bytes zero is a valid structure of integers.
    #[allow(unsafe_code)]
    let mut registers: Registers = unsafe { std::mem::zeroed() };
    let data = (&raw mut registers).cast();
    // SAFETY: the request writes one `user_regs_struct` to data, which is one that lives for the call.
    #[allow(unsafe_code)]
    unsafe {
        ptrace(libc::PTRACE_GETREGS, tid, std::ptr::null_mut(), data)?;
    }
    Ok(registers)
}

/// `PTRACE_SETREGS`.
pub(super) fn set_registers(tid: u32, registers: &Registers) -> Result<(), Errno> {
    let data = std::ptr::from_ref(registers).cast_mut().cast();
    // SAFETY: the request reads one `user_regs_struct` from data and writes nothing.
    #[allow(unsafe_code)]
    unsafe {
        ptrace(libc::PTRACE_SETREGS, tid, std::ptr::null_mut(), data)
    }
}

/// `PTRACE_GETREGSET` of NT_X86_XSTATE: the floating-point state, in the processor's standard format.
pub(super) fn xstate(tid: u32) -> Result<Vec<u8>, Errno> {
    let mut state = vec![0; XSTATE_MOST];
    let length = regset(libc::PTRACE_GETREGSET, tid, XSTATE, &mut state)?;
    state.truncate(length);
    Ok(state)
}

/// `PTRACE_SETREGSET` of NT_X86_XSTATE.
pub(super) fn set_xstate(tid: u32, state: &mut [u8]) -> Result<(), Errno> {
    regset(libc::PTRACE_SETREGSET, tid, XSTATE, state).map(drop)
}

/// Whether the thread has a shadow stack. Kernels before 6.6 have none and no such register set.
pub(super) fn has_shadow_stack(tid: u32) -> bool {
    regset(libc::PTRACE_GETREGSET, tid, SHADOW_STACK, &mut [0; 8]).is_ok()
}

fn regset(request: libc::c_uint, tid: u32, kind: libc::c_int, data: &mut [u8]) -> Result<usize, Errno> {
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: the request reads or writes at most `iov_len` bytes at `iov_base`, which are those of `data`, borrowed
    // mutably for the call, and writes how many those were to `iov_len`.
    #[allow(unsafe_code)]
    unsafe {
        ptrace(request, tid, kind as usize as *mut libc::c_void, (&raw mut iov).cast())?;
    }
    Ok(iov.iov_len.min(data.len()))
}

/// `PTRACE_GETSIGMASK`; of a thread in a system call that changed its mask for a while, the mask it goes back to.
pub(super) fn mask(tid: u32) -> Result<u64, Errno> {
    let mut mask = 0u64;
    // SAFETY: the request writes as many bytes as the address says, 8, to data, which is a u64 that lives for the call.
    #[allow(unsafe_code)]
    unsafe {
        ptrace(GET_MASK, tid, 8 as *mut libc::c_void, (&raw mut mask).cast())?;
    }
    Ok(mask)
}

/// `PTRACE_SETSIGMASK`.
pub(super) fn set_mask(tid: u32, mask: u64) -> Result<(), Errno> {
    let data = std::ptr::from_ref(&mask).cast_mut().cast();
    // SAFETY: the request reads as many bytes as the address says, 8, from data, which is a u64.
    #[allow(unsafe_code)]
    unsafe {
        ptrace(SET_MASK, tid, 8 as *mut libc::c_void, data)
    }
}

/// `PTRACE_SETOPTIONS`, `PTRACE_SYSCALL`, `PTRACE_CONT`, `PTRACE_INTERRUPT`: requests whose data is a number.
pub(super) fn plain(request: libc::c_uint, tid: u32, data: libc::c_int) -> Result<(), Errno> {
    // SAFETY: these requests take the data for a number (options, a signal) and access no memory of this process.
    #[allow(unsafe_code)]
    unsafe {
        ptrace(request, tid, std::ptr::null_mut(), data as usize as *mut libc::c_void)
    }
}

/// `tgkill(pid, tid, signal)`: for this thread only.
pub(super) fn send(pid: Pid, tid: u32, signal: libc::c_int) -> Result<(), Errno> {
    // SAFETY: tgkill takes three numbers.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_tgkill, pid.as_raw_pid(), tid as libc::pid_t, signal) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// `waitpid(tid, __WALL | WNOHANG)`: what has become of the thread, if there is something new.
pub(crate) fn wait(tid: u32) -> Result<Option<libc::c_int>, Errno> {
    let mut status = 0;
    // SAFETY: `status` is an int that lives for the call, which is all that is written.
    #[allow(unsafe_code)]
    let waited = unsafe { libc::waitpid(tid as libc::pid_t, &mut status, libc::__WALL | libc::WNOHANG) };
    match waited {
        0 => Ok(None),
        1.. => Ok(Some(status)),
        // Nobody's child any more.
        _ if last_error() == Errno::CHILD => Err(Errno::SRCH),
        _ => Err(last_error()),
    }
}

/// `ptrace(request, tid, address, data)`.
///
/// # Safety
///
/// `address` and `data` are what the request wants them to be.
#[allow(unsafe_code)]
unsafe fn ptrace(
    request: libc::c_uint,
    tid: u32,
    address: *mut libc::c_void,
    data: *mut libc::c_void,
) -> Result<(), Errno> {
    // SAFETY: the caller's.
    let result = unsafe { libc::ptrace(request, tid as libc::pid_t, address, data) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}
