//! The signal frame that a borrowed call returns through, byte for byte as the kernel writes and reads it: `struct
//! rt_sigframe`, `struct ucontext`, `struct sigcontext` and the floating-point state with its two magic numbers
//! (arch/x86/include/asm/sigframe.h and uapi/asm/sigcontext.h, Linux 6.18; unchanged since 3.2 where it is used).
//!
//! Invariants: the function finds the stack pointer as after a call instruction (16 n + 8); the alternate signal
//! stack is left as it is, which an impossible mode in its place achieves (do_sigaltstack, kernel/signal.c, answers
//! EINVAL, and restore_altstack passes over that).

use super::requests::Registers;

/// What the x86_64 ABI lets a function keep below its stack pointer.
const RED_ZONE: u64 = 128;
/// pretcode, ucontext, siginfo.
const FRAME: u64 = 8 + UCONTEXT as u64 + 128;
const UCONTEXT: usize = 304;
/// In the ucontext.
const STACK_FLAGS: usize = 24;
const CONTEXT: usize = 40;
const MASK: usize = 296;
/// UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS.
const FLAGS: u64 = 7;
/// Neither SS_ONSTACK nor SS_DISABLE.
const NO_MODE: u32 = 4;
/// In the floating-point state: `struct _fpx_sw_bytes`, and the header behind the legacy area.
const SOFTWARE: usize = 464;
const HEADER: usize = 512;
const LEGACY_END: usize = 576;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// XFEATURE_XTILE_DATA: only tasks that asked for it have room for it.
const TILE_DATA: u64 = 1 << 18;

/// Room behind the frame for what a function is given.
pub(super) const TEXT: u64 = 128;

/// A frame, where it goes and what the stack pointer is when the function begins.
pub(super) struct Frame {
    /// Where its first byte goes; the function's stack pointer.
    pub(super) at: u64,
    /// From `at` on.
    pub(super) bytes: Vec<u8>,
    /// Where a text of at most [`TEXT`] bytes may stand.
    pub(super) text: u64,
}

/// The frame of a thread that shall go on with `registers`, `xstate` and `mask`, after a function that returns to
/// `restorer`. `stack_pointer` is what it is now.
pub(super) fn frame(
    registers: &Registers,
    xstate: &[u8],
    mask: u64,
    stack_pointer: u64,
    restorer: u64,
) -> Frame {
    let state = signal_xstate(xstate);
    let text = stack_pointer - RED_ZONE - TEXT;
    let state_at = (text - state.len() as u64) & !63;
    let at = ((state_at - FRAME) & !15) - 8;
    let mut bytes = vec![0; (state_at - at) as usize];
    put(&mut bytes, 0, &restorer.to_le_bytes());
    let context = &mut bytes[8..8 + UCONTEXT];
    put(context, 0, &FLAGS.to_le_bytes());
    put(context, STACK_FLAGS, &NO_MODE.to_le_bytes());
    put(context, MASK, &mask.to_le_bytes());
    let r = registers;
    let words = [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax,
        r.rcx, r.rsp, r.rip, r.eflags,
    ];
    for (n, word) in words.iter().enumerate() {
        put(context, CONTEXT + 8 * n, &word.to_le_bytes());
    }
    // cs, gs, fs, ss: the kernel restores the first and the last.
    put(context, CONTEXT + 144, &(r.cs as u16).to_le_bytes());
    put(context, CONTEXT + 150, &(r.ss as u16).to_le_bytes());
    put(context, CONTEXT + 184, &state_at.to_le_bytes());
    bytes.extend(state);
    Frame { at, bytes, text }
}

/// The state as it stands in a signal frame: without what this task has no room for, and with the kernel's marks.
fn signal_xstate(xstate: &[u8]) -> Vec<u8> {
    let word = |at: usize| {
        xstate.get(at..at + 8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
    };
    let in_use = word(HEADER);
    // Here the kernel says in PTRACE_GETREGSET which features the processor has.
    let features = word(SOFTWARE) & (in_use | !TILE_DATA);
    let size = standard_size(features).min(xstate.len());
    let mut state = xstate.get(..size).unwrap_or_default().to_vec();
    put(&mut state, HEADER, &(in_use & features).to_le_bytes());
    put(&mut state, SOFTWARE, &MAGIC1.to_le_bytes());
    put(&mut state, SOFTWARE + 4, &(size as u32 + 4).to_le_bytes());
    put(&mut state, SOFTWARE + 8, &features.to_le_bytes());
    put(&mut state, SOFTWARE + 16, &(size as u32).to_le_bytes());
    put(&mut state, SOFTWARE + 20, &[0; 28]);
    state.extend(MAGIC2.to_le_bytes());
    state
}

/// Where the last of `features` ends in the standard format: CPUID leaf 13 says, the same on every processor of the
/// machine.
fn standard_size(features: u64) -> usize {
    let end = |feature: u32| {
        let leaf = core::arch::x86_64::__cpuid_count(13, feature);
        (leaf.ebx + leaf.eax) as usize
    };
    let extended = (2..63).filter(|feature| features >> feature & 1 == 1);
    extended.map(end).max().unwrap_or(0).max(LEGACY_END)
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + what.len()) {
        place.copy_from_slice(what);
    }
}
