//! The restartable sequences of this program, as the kernel finds them: through the descriptors in the section `__rseq_cs`.

use iced_x86::{
    Code, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
};
use std::slice;

/// What glibc has registered as the signature of an abort label.
const SIGNATURE: u32 = 0x5305_3053;

/// As in `include/uapi/linux/rseq.h`, `struct rseq_cs`.
#[repr(C, align(32))]
#[derive(Debug)]
struct Descriptor {
    version: u32,
    flags: u32,
    start: u64,
    length: u64,
    abort: u64,
}

// SAFETY: the linker defines both at the ends of the section, which has descriptors and nothing else.
unsafe extern "C" {
    #[link_name = "__start___rseq_cs"]
    static FIRST: Descriptor;
    #[link_name = "__stop___rseq_cs"]
    static END: Descriptor;
}

/// What is expected of an interruption at an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Before the sequence, where it is armed: goes on.
    Arming,
    /// In the sequence, the commit included: aborted.
    Body,
    /// Behind the commit: goes on.
    After,
    /// Behind the abort label: goes on, and is reached only after an abort.
    Abort,
}

/// One instance of a sequence in this program.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) start: u64,
    length: u64,
    pub(crate) abort: u64,
    pub(crate) points: Vec<(Part, Instruction)>,
}

impl Sequence {
    /// The instructions between the first and the commit, by which instances of one piece of source know each other.
    pub(crate) fn kind(&self) -> Vec<Mnemonic> {
        self.part(Part::Body).map(Instruction::mnemonic).collect()
    }

    pub(crate) fn part(&self, part: Part) -> impl Iterator<Item = &Instruction> {
        self.points.iter().filter(move |(of, _)| *of == part).map(|(_, instruction)| instruction)
    }
}

/// The instructions in `length` bytes of this program's text from `address` on.
fn decode(address: u64, length: usize) -> Vec<Instruction> {
    // SAFETY: text of this program, which is mapped; at most a few bytes beyond a function, where there is more text.
    let bytes = unsafe { slice::from_raw_parts(address as *const u8, length) };
    Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).into_iter().collect()
}

/// The two instructions right before a start that arm the sequence: the address of its descriptor into a register, and that into
/// the thread's area. None if they are not there.
fn arming(start: u64) -> Vec<Instruction> {
    let arms = |code: &[Instruction]| {
        matches!(code, [address, store]
            if address.code() == Code::Lea_r64_m && store.segment_prefix() == Register::FS && !store.is_invalid())
    };
    (8..20).map(|length| decode(start - length, length as usize)).find(|code| arms(code)).unwrap_or_default()
}

/// Every sequence of this program.
pub(crate) fn all() -> Vec<Sequence> {
    // SAFETY: the section is an array of descriptors from the one symbol to the other.
    let descriptors = unsafe {
        let (first, end) = (&raw const FIRST, &raw const END);
        slice::from_raw_parts(first, usize::try_from(end.offset_from(first)).unwrap())
    };
    assert!(!descriptors.is_empty(), "this program has no sequences");
    descriptors.iter().map(read).collect()
}

fn read(descriptor: &Descriptor) -> Sequence {
    let &Descriptor { version, flags, start, length, abort } = descriptor;
    assert_eq!((version, flags), (0, 0));
    let point = |part| move |instruction: Instruction| (part, instruction);
    let body = decode(start, length as usize).into_iter().map(point(Part::Body));
    let after = decode(start + length, 15).into_iter().take(1).map(point(Part::After));
    let label = decode(abort, 48);
    let leaves =
        label.iter().position(|each| each.mnemonic() == Mnemonic::Jmp).expect("it goes on elsewhere");
    let label = label.into_iter().take(leaves + 1).map(point(Part::Abort));
    let points =
        arming(start).into_iter().map(point(Part::Arming)).chain(body).chain(after).chain(label).collect();
    Sequence { start, length, abort, points }
}

impl Sequence {
    /// What can be seen without running it.
    pub(crate) fn check(&self) {
        assert_eq!(self.part(Part::Arming).count(), 2, "it is armed right before its start");
        let end = self.start + self.length;
        assert!(!(self.start..end).contains(&self.abort), "the abort label is outside of the sequence");
        // SAFETY: text of this program.
        let before = unsafe { (self.abort as *const u8).sub(4).cast::<u32>().read_unaligned() };
        assert_eq!(before, SIGNATURE, "the kernel kills a thread that is aborted to anywhere else");
        let body: Vec<_> = self.part(Part::Body).collect();
        let length: usize = body.iter().map(|each| each.len()).sum();
        assert_eq!(length as u64, self.length, "whole instructions");
        let last = body.last().unwrap();
        assert!(
            last.mnemonic() == Mnemonic::Mov && writes_memory(last),
            "it ends with the store that commits it"
        );
        assert!(
            !body.iter().any(|each| each.is_call_near() || each.is_call_near_indirect()),
            "no call inside"
        );
        assert!(!body.iter().any(|each| each.has_lock_prefix()), "no locked instruction");
        let of_the_area = |each: &Instruction| each.segment_prefix() == Register::FS && writes_memory(each);
        assert!(!body.iter().any(|each| of_the_area(each)), "nothing of the thread's area is written inside");
    }
}

fn writes_memory(instruction: &Instruction) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let written = |access| matches!(access, OpAccess::Write | OpAccess::ReadWrite);
    factory.info(instruction).used_memory().iter().any(|used| written(used.access()))
}
