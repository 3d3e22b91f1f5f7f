//! Owns the restartable sequences themselves, for x86-64: five short pieces of assembly with one frame around them.
//!
//! Each piece ends with the one store that commits it. Wherever it is interrupted before that store, by a signal, a preemption,
//! a migration or a `membarrier` from another CPU, the kernel continues it at its abort label, from which it reports that nothing
//! has happened. After that store it is complete. Why that is enough is argued in `raw/rseq.rs`; `tests/breakpoints.rs` does
//! it at every instruction.
//!
//! The kernel's side: `include/uapi/linux/rseq.h`, `kernel/rseq.c`. The C library registers each thread's area (glibc manual,
//! "Restartable Sequences"); the only field of it that is ever written here is `rseq_cs`.

use super::{Setback, kernel::Area};
use crate::raw::{
    arena::Carved,
    magazine::{FrameNumber, Magazines},
    slot::{Slot, Slots},
    wanted::Wanted,
};
use crate::sync::counter;
use core::{arch::asm, mem::offset_of};
use crossbeam_utils::CachePadded;

/// What the kernel looks for in the four bytes before an abort label, as glibc registered it (`RSEQ_SIG`). With the three
/// bytes before it a `ud1`, an instruction that nothing ever executes.
const SIGNATURE: u32 = 0x5305_3053;

/// Where a thread's area has the number of the CPU on which it runs, all ones without a registration.
const CPU_ID: usize = 4;
/// Where a thread's area has the address of the sequence that it is in.
const RSEQ_CS: usize = 8;
const SLOT_BASE: usize = offset_of!(Slots, slots) + Carved::<CachePadded<Slot>>::START;
const RESTARTABLE: usize = offset_of!(Slots, restartable);
const ENTRY_BASE: usize = offset_of!(Slots, magazines) + Magazines::ENTRY_BASE;
const POSITION_MASK: usize = offset_of!(Slots, magazines) + Magazines::POSITION_MASK;
const WORD: usize = offset_of!(Slot, word);
const GATE_MASK: usize = offset_of!(Slot, gate);
const GATE_SIZE: usize = offset_of!(Slot, gate) + 4;
const POPPED: usize = offset_of!(Slot, popped);
const PUSHED: usize = offset_of!(Slot, pushed);
const SLOT_BITS: u32 = size_of::<CachePadded<Slot>>().ilog2();
const _: () = assert!(size_of::<CachePadded<Slot>>() == 1 << SLOT_BITS);

/// What `status` is after a sequence; an address in user space, which is positive, or 0 after one that committed.
const LEFT: isize = -1;
const ABORTED: isize = -2;
const ABORTED_COUNTED: isize = -3;

/// The frame around a sequence.
///
/// In: `area`, the offset of the thread's area from the thread pointer; `slots`, the address of the [`Slots`].
/// The body finds the slot of this CPU in `r8`. It leaves with a jump to `8f`, before it has stored anything.
/// `commit` is its last instruction, and the only store that anybody else ever looks at.
///
/// The slot is in the same register in every sequence, so that a load of the word is written as the store before it was. Processors
/// that mirror memory operands guess by the registers that a load gets what was last stored (A. Fog, "The microarchitecture of Intel,
/// AMD and VIA CPUs"). On a Zen 4, which guesses wrong if a take and a give have their slots in two registers, a pair takes half as
/// long this way.
///
/// A body may count: it clears `status`, and the carry flag with it, subtracts -1 from a counter, which sets the flag, and from there
/// to the end changes neither. So the abort label knows whether this attempt was counted: up to the counter either `status` is
/// still the address that armed it, or the flag is clear. The flag alone would not do: a comparison before a jump sets it as well.
macro_rules! restartable {
    ($($body:literal),+ ; commit $commit:literal ; $($operands:tt)+) => {
        asm!(
            // Arm it.
            "lea {status}, [rip + 5f]",
            "mov qword ptr fs:[{area} + {rseq_cs}], {status}",
            // The sequence.
            "2:",
            "mov r8d, dword ptr fs:[{area} + {cpu_id}]",
            "cmp qword ptr [{slots} + {restartable}], r8",
            "jbe 8f",
            "shl r8, {slot_bits}",
            "add r8, qword ptr [{slots} + {slot_base}]",
            $($body,)+
            $commit,
            "3:",
            // Where all ways meet.
            "6:",
            ".pushsection .text.unlikely.framepool_rseq, \"ax\", @progbits",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long {signature}",
            "7:",
            "jnc 9f",
            "test {status}, {status}",
            "jnz 9f",
            "mov {status}, {aborted_counted}",
            "jmp 6b",
            "9:",
            "mov {status}, {aborted}",
            "jmp 6b",
            "8:",
            "mov {status}, {left}",
            "jmp 6b",
            ".popsection",
            // What the kernel reads: version, flags, start, length up to behind the commit, abort label.
            ".pushsection __rseq_cs, \"aw\", @progbits",
            ".balign 32",
            "5:",
            ".long 0, 0",
            ".quad 2b, 3b - 2b, 7b",
            ".popsection",
            rseq_cs = const RSEQ_CS,
            cpu_id = const CPU_ID,
            restartable = const RESTARTABLE,
            slot_bits = const SLOT_BITS,
            slot_base = const SLOT_BASE,
            signature = const SIGNATURE,
            aborted = const ABORTED,
            aborted_counted = const ABORTED_COUNTED,
            left = const LEFT,
            $($operands)+
            options(nostack),
        )
    };
}

impl Area {
    /// The number of the CPU that runs this code; all ones on a thread without a registration.
    #[inline(always)]
    pub(crate) fn cpu(self) -> usize {
        let cpu: u32;
        // SAFETY: the area is this thread's, mapped as long as the thread lives.
        unsafe {
            asm!(
                "mov {cpu:e}, dword ptr fs:[{area} + {cpu_id}]",
                area = in(reg) self.offset(),
                cpu = out(reg) cpu,
                cpu_id = const CPU_ID,
                options(nostack, preserves_flags, readonly),
            );
        }
        cpu as usize
    }

    /// Takes a frame out of the loaded magazine of this CPU's slot, if there is one and the gate is open.
    #[inline(always)]
    pub(crate) fn pop(self, slots: &Slots) -> Result<FrameNumber, Unfinished> {
        let (status, slot, frame): (isize, *const Slot, u32);
        // SAFETY: up to the commit, only the counter is stored to, which is the CPU's own. The entry is filled, since the length
        // in the word is not 0, and ours if the commit happens (raw/rseq.rs); otherwise the number is dropped.
        unsafe {
            restartable!(
                // The gate before the word: who finds it open again finds the word that was stored before it was opened.
                "mov {gate:e}, dword ptr [r8 + {gate_mask}]",
                "mov {loaded:e}, dword ptr [r8 + {word}]",
                // No bit of the length is set, or none passes.
                "test {loaded:e}, {gate:e}",
                "jz 8f",
                "mov {gate}, qword ptr [{slots} + {entry_base}]",
                "xor {status:e}, {status:e}",
                "sub qword ptr [r8 + {popped}], -1",
                "mov {frame:e}, dword ptr [{gate} + {loaded} * 4 - 4]",
                "dec {loaded:e}";
                commit "mov dword ptr [r8 + {word}], {loaded:e}";
                area = in(reg) self.offset(),
                slots = in(reg) slots,
                status = out(reg) status,
                out("r8") slot,
                gate = out(reg) _,
                loaded = out(reg) _,
                frame = out(reg) frame,
                gate_mask = const GATE_MASK,
                word = const WORD,
                entry_base = const ENTRY_BASE,
                popped = const POPPED,
            );
        }
        if status < 0 { Err(Unfinished { status, slot }) } else { Ok(frame) }
    }

    /// Puts a frame into the loaded magazine of this CPU's slot, if there is room, the gate is open and the frame not wanted
    /// elsewhere.
    #[inline(always)]
    pub(crate) fn push(self, slots: &Slots, frame: FrameNumber, wanted: &Wanted) -> Result<(), Unfinished> {
        let (status, slot): (isize, *const Slot);
        // SAFETY: up to the commit, only the counter and a free entry are stored to. The entry's position is below the size, and
        // its magazine ours as long as the sequence is not aborted (raw/rseq.rs).
        unsafe {
            restartable!(
                // In the sequence, so that whoever has shut the gate since it began is seen to want it.
                "cmp qword ptr [{wanted}], 0",
                "jne 8f",
                // The gate before the word, as in `pop`.
                "mov {gate:e}, dword ptr [r8 + {gate_size}]",
                "mov {loaded:e}, dword ptr [r8 + {word}]",
                "mov {entries:e}, dword ptr [{slots} + {position_mask}]",
                "and {entries:e}, {loaded:e}",
                // The length is below the size, or nothing passes.
                "cmp {gate:e}, {entries:e}",
                "jbe 8f",
                "mov {entries}, qword ptr [{slots} + {entry_base}]",
                "xor {status:e}, {status:e}",
                "sub qword ptr [r8 + {pushed}], -1",
                "mov dword ptr [{entries} + {loaded} * 4], {frame:e}",
                "inc {loaded:e}";
                commit "mov dword ptr [r8 + {word}], {loaded:e}";
                area = in(reg) self.offset(),
                slots = in(reg) slots,
                frame = in(reg) frame,
                wanted = in(reg) wanted.word(),
                status = out(reg) status,
                out("r8") slot,
                gate = out(reg) _,
                loaded = out(reg) _,
                entries = out(reg) _,
                gate_size = const GATE_SIZE,
                word = const WORD,
                position_mask = const POSITION_MASK,
                entry_base = const ENTRY_BASE,
                pushed = const PUSHED,
            );
        }
        if status < 0 { Err(Unfinished { status, slot }) } else { Ok(()) }
    }

    /// Takes frames out of the loaded magazine of this CPU's slot, the last first; how many, at least one.
    pub(crate) fn pop_many(self, slots: &Slots, frames: &mut [FrameNumber]) -> Result<usize, Setback> {
        if frames.is_empty() {
            return Err(Setback::Left);
        }
        let (status, slot, count): (isize, *const Slot, usize);
        // SAFETY: up to the commit, nothing is stored but what the caller gave room for: the smaller of the length and its room,
        // which is not 0. The entries are filled, and ours if the commit happens (raw/rseq.rs).
        unsafe {
            restartable!(
                // The gate before the word, as in `pop`.
                "mov {gate:e}, dword ptr [r8 + {gate_mask}]",
                "mov {loaded:e}, dword ptr [r8 + {word}]",
                "and {gate:e}, {loaded:e}",
                "jz 8f",
                "cmp {gate}, {room}",
                "cmova {gate}, {room}",
                "mov {entries}, qword ptr [{slots} + {entry_base}]",
                "lea {entries}, [{entries} + {loaded} * 4]",
                "xor {count:e}, {count:e}",
                "4:",
                "sub {entries}, 4",
                "mov {entry:e}, dword ptr [{entries}]",
                "mov dword ptr [{frames} + {count} * 4], {entry:e}",
                "inc {count}",
                "cmp {count}, {gate}",
                "jb 4b",
                "sub {loaded:e}, {count:e}";
                commit "mov dword ptr [r8 + {word}], {loaded:e}";
                area = in(reg) self.offset(),
                slots = in(reg) slots,
                frames = in(reg) frames.as_mut_ptr(),
                room = in(reg) frames.len(),
                status = out(reg) status,
                out("r8") slot,
                gate = out(reg) _,
                loaded = out(reg) _,
                entries = out(reg) _,
                entry = out(reg) _,
                count = out(reg) count,
                gate_mask = const GATE_MASK,
                word = const WORD,
                entry_base = const ENTRY_BASE,
            );
        }
        if status < 0 {
            return Err(setback(status));
        }
        // SAFETY: a sequence that committed had found its slot.
        unsafe { &*slot }.popped_apart.add(count as u64);
        Ok(count)
    }

    /// Puts frames into the loaded magazine of this CPU's slot, unless they are wanted elsewhere, the first first; how many, at least
    /// one.
    pub(crate) fn push_many(
        self,
        slots: &Slots,
        frames: &[FrameNumber],
        wanted: &Wanted,
    ) -> Result<usize, Setback> {
        if frames.is_empty() {
            return Err(Setback::Left);
        }
        let (status, slot, count): (isize, *const Slot, usize);
        // SAFETY: up to the commit, only free entries are stored to, the smaller of the room in the magazine and the frames
        // there are, which is not 0. The magazine is ours as long as the sequence is not aborted (raw/rseq.rs).
        unsafe {
            restartable!(
                // As in `push`.
                "cmp qword ptr [{wanted}], 0",
                "jne 8f",
                // The gate before the word, as in `pop`.
                "mov {gate:e}, dword ptr [r8 + {gate_size}]",
                "mov {loaded:e}, dword ptr [r8 + {word}]",
                "mov {entry:e}, dword ptr [{slots} + {position_mask}]",
                "and {entry:e}, {loaded:e}",
                "sub {gate:e}, {entry:e}",
                "jbe 8f",
                "cmp {gate}, {available}",
                "cmova {gate}, {available}",
                "mov {entries}, qword ptr [{slots} + {entry_base}]",
                "lea {entries}, [{entries} + {loaded} * 4]",
                "xor {count:e}, {count:e}",
                "4:",
                "mov {entry:e}, dword ptr [{frames} + {count} * 4]",
                "mov dword ptr [{entries} + {count} * 4], {entry:e}",
                "inc {count}",
                "cmp {count}, {gate}",
                "jb 4b",
                "add {loaded:e}, {count:e}";
                commit "mov dword ptr [r8 + {word}], {loaded:e}";
                area = in(reg) self.offset(),
                slots = in(reg) slots,
                frames = in(reg) frames.as_ptr(),
                available = in(reg) frames.len(),
                wanted = in(reg) wanted.word(),
                status = out(reg) status,
                out("r8") slot,
                gate = out(reg) _,
                loaded = out(reg) _,
                entries = out(reg) _,
                entry = out(reg) _,
                count = out(reg) count,
                gate_size = const GATE_SIZE,
                word = const WORD,
                position_mask = const POSITION_MASK,
                entry_base = const ENTRY_BASE,
            );
        }
        if status < 0 {
            return Err(setback(status));
        }
        // SAFETY: a sequence that committed had found its slot.
        unsafe { &*slot }.pushed_apart.add(count as u64);
        Ok(count)
    }

    /// Stores `after` into the word of `slot` if that is this CPU's, its gate is open, and its word is `before`.
    pub(crate) fn commit(self, slots: &Slots, slot: &Slot, before: u64, after: u64) -> Result<(), Setback> {
        let status: isize;
        // SAFETY: nothing is stored but the commit.
        unsafe {
            restartable!(
                "cmp r8, {wanted}",
                "jne 8f",
                // The gate before the word, as in `pop`.
                "cmp dword ptr [r8 + {gate_mask}], 0",
                "je 8f",
                "cmp qword ptr [r8 + {word}], {before}",
                "jne 8f";
                commit "mov qword ptr [r8 + {word}], {after}";
                area = in(reg) self.offset(),
                slots = in(reg) slots,
                wanted = in(reg) slot,
                before = in(reg) before,
                after = in(reg) after,
                status = out(reg) status,
                out("r8") _,
                gate_mask = const GATE_MASK,
                word = const WORD,
            );
        }
        if status < 0 { Err(setback(status)) } else { Ok(()) }
    }
}

/// A sequence that did not commit, and may have counted all the same.
#[derive(Debug)]
pub(crate) struct Unfinished {
    status: isize,
    slot: *const Slot,
}

impl Unfinished {
    /// Takes back what was counted, from a counter beside the one of the slot; why the sequence did not commit.
    pub(crate) fn settle(self, apart: impl Fn(&Slot) -> &counter::Shared) -> Setback {
        if self.status == ABORTED_COUNTED {
            // SAFETY: a sequence that counted had found its slot.
            apart(unsafe { &*self.slot }).subtract(1);
        }
        setback(self.status)
    }
}

const fn setback(status: isize) -> Setback {
    if status == LEFT { Setback::Left } else { Setback::Aborted }
}
