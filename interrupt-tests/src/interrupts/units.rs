//! The operations on the tables by which units find domains, and on the ids of domains: each context has a device, a PASID and an id of
//! its own, in tables and words that all share.

use super::{
    host::{Pool, number_of},
    operations::{Of, Operation, Role},
    world::{Hand, LEVELS, Violation, World},
};
use framepool::{
    FrameSource, PhysAddr,
    vtd::{context::*, *},
};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst};

/// A unit that snoops, with both modes and PASIDs of 20 bits: CAP_REG and ECAP_REG.
const UNIT: Capabilities =
    Capabilities::from_registers(0x00d2_008c_222f_0606, 0x0001_c800_00f0_0f4b | 1 << 40 | 19 << 35);
/// Ids that there are, which is one too few for all; 0 is not handed out.
const IDS: u16 = LEVELS as u16 - 1;
/// The device that has PASIDs, beside those of the contexts.
const SHARED: SourceId = SourceId::from_bits(0x7F);
const PAGE: u64 = 4096;

/// What a context may have attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    /// Its device, in legacy mode.
    Legacy,
    /// Its device, in scalable mode.
    Device,
    /// Its PASID of the device that all share.
    Pasid,
}

const THINGS: [Thing; 3] = [Thing::Legacy, Thing::Device, Thing::Pasid];
const LEGACY: usize = Thing::Legacy as usize;
const DEVICE: usize = Thing::Device as usize;
const PASID: usize = Thing::Pasid as usize;

/// The tables of a unit in each mode, the ids of its domains, and who has what.
pub struct Units<'w> {
    legacy: LegacyTables<&'w Pool<'w>>,
    scalable: ScalableTables<&'w Pool<'w>>,
    ids: DomainIds<1>,
    attached: [[AtomicBool; THINGS.len()]; LEVELS],
    /// The id that a context has, 0 for none.
    taken: [AtomicU16; LEVELS],
    /// Contexts that are about to take one or to give it back, which may have it or not.
    busy: [AtomicBool; LEVELS],
    /// How many may have had one before a context's call.
    before: [AtomicU16; LEVELS],
}

const fn attaching<const THING: usize>(name: &'static str) -> Operation {
    Operation::new(name, Role::Any, attach::<THING>)
        .needs(has::<THING, false>)
        .settled_by(note::<THING, true>)
        .of(Of::Units)
}

const fn detaching<const THING: usize>(name: &'static str) -> Operation {
    Operation::new(name, Role::Any, detach::<THING>)
        .needs(has::<THING, true>)
        .settled_by(note::<THING, false>)
        .of(Of::Units)
}

// Those that bring a unit into a state.
const ATTACH_LEGACY: Operation = attaching::<LEGACY>("attach a device, legacy");
const ATTACH_DEVICE: Operation = attaching::<DEVICE>("attach a device");
const ATTACH_PASID: Operation = attaching::<PASID>("attach a PASID");
const TAKE: Operation =
    Operation::new("DomainIds::take", Role::Any, take).needs(note_taken).settled_by(check_take).of(Of::Units);

/// These operations.
pub static UNITS: &[Operation] = &[
    ATTACH_LEGACY,
    detaching::<LEGACY>("detach a device, legacy"),
    ATTACH_DEVICE,
    detaching::<DEVICE>("detach a device"),
    ATTACH_PASID,
    detaching::<PASID>("detach a PASID"),
    Operation::new("look up devices", Role::Any, look_up).needs(has_units).settled_by(check).of(Of::Units),
    TAKE,
    Operation::new("DomainIds::give", Role::Any, give)
        .needs(let_go_of_id)
        .settled_by(check_give)
        .of(Of::Units),
];

// What a call came to, as [`Hand::outcome`] has it.
const DONE: u32 = 1;
const NONE_LEFT: u32 = 2;
const WRONG: u32 = 3;

/// The device of a context, on the bus and in the half of it that all share.
fn device(level: usize) -> SourceId {
    SourceId::from_bits(level as u16)
}

/// The PASID of a context, among the 64 that share a table.
fn pasid(level: usize) -> Pasid {
    Pasid::new(level as u32).unwrap_or(Pasid::ZERO)
}

/// The tables to which the entries of a context lead: a page that is nobody's frame, since nothing walks there.
fn root(level: usize) -> PhysAddr {
    PhysAddr::new((level as u64 + 1) * PAGE)
}

fn context_entry(level: usize) -> ContextEntry {
    let translation =
        ContextTranslation::SecondStage { root: root(level), levels: Levels::Three, device_tlb: false };
    ContextEntry::new(translation, DomainId::FIRST)
}

fn pasid_entry(level: usize) -> PasidEntry {
    let tables = SecondStageRoot { root: root(level), levels: Levels::Three, accessed_dirty: false };
    PasidEntry::new(PasidTranslation::SecondStage(tables), DomainId::FIRST)
}

fn has_units(world: &World<'_>, _hand: &Hand) -> bool {
    world.units.is_some()
}

fn has<const THING: usize, const ATTACHED: bool>(world: &World<'_>, hand: &Hand) -> bool {
    let attached = |units: &Units<'_>| units.has(hand.level, THINGS[THING]);
    world.units.as_ref().is_some_and(|units| attached(units) == ATTACHED)
}

fn note<const THING: usize, const ATTACHED: bool>(world: &World<'_>, hand: &Hand) {
    match (hand.outcome.load(SeqCst), &world.units) {
        (DONE, Some(units)) => units.attached[hand.level][THING].store(ATTACHED, SeqCst),
        (NONE_LEFT, _) if ATTACHED => {}
        _ => world.report(Violation::Outcome),
    }
}

fn check(world: &World<'_>, hand: &Hand) {
    if hand.outcome.load(SeqCst) != DONE {
        world.report(Violation::Outcome);
    }
}

extern "C" fn attach<const THING: usize>(world: &World<'_>, hand: &Hand) {
    let Some(units) = &world.units else { return };
    let outcome = match THINGS[THING] {
        // SAFETY: no unit reads these tables.
        Thing::Legacy => unsafe { units.legacy.attach(device(hand.level), context_entry(hand.level)) },
        Thing::Device => units.scalable.attach_device(device(hand.level), DeviceConfig::default()),
        // SAFETY: as above, and nobody detaches the device.
        Thing::Pasid => unsafe { units.scalable.attach(SHARED, pasid(hand.level), pasid_entry(hand.level)) },
    };
    let outcome = match outcome {
        Ok(_) => DONE,
        Err(AttachError::OutOfFrames) => NONE_LEFT,
        Err(_) => WRONG,
    };
    hand.outcome.store(outcome, SeqCst);
}

/// Takes the entry away, and says at once that the unit has forgotten it.
extern "C" fn detach<const THING: usize>(world: &World<'_>, hand: &Hand) {
    let Some(units) = &world.units else { return };
    let detached = match THINGS[THING] {
        Thing::Legacy => units.legacy.detach(device(hand.level)),
        // SAFETY: nobody attaches a PASID to it.
        Thing::Device => unsafe { units.scalable.detach_device(device(hand.level)) },
        // SAFETY: nobody detaches the device.
        Thing::Pasid => unsafe { units.scalable.detach(SHARED, pasid(hand.level)) },
    };
    let outcome = match detached {
        Ok(detached) => {
            // SAFETY: no unit reads these tables.
            unsafe { detached.complete() };
            DONE
        }
        Err(_) => WRONG,
    };
    hand.outcome.store(outcome, SeqCst);
}

/// What a context has attached is there as it was attached, and what it has not is not, whatever others attach and detach meanwhile.
extern "C" fn look_up(world: &World<'_>, hand: &Hand) {
    let Some(units) = &world.units else { return };
    let right = THINGS.into_iter().all(|thing| units.is_right(hand.level, thing));
    hand.outcome.store(if right { DONE } else { WRONG }, SeqCst);
}

/// How many contexts may have an id before the call, which needs that this one has none.
fn note_taken(world: &World<'_>, hand: &Hand) -> bool {
    let ready = |units: &&Units<'_>| units.id_of(hand.level).is_none();
    let Some(units) = world.units.as_ref().filter(ready) else { return false };
    units.before[hand.level].store(units.ids_taken(), SeqCst);
    units.busy[hand.level].store(true, SeqCst);
    true
}

extern "C" fn take(world: &World<'_>, hand: &Hand) {
    let Some(units) = &world.units else { return };
    let id = units.ids.take().map_or(0, DomainId::get);
    hand.outcome.store(u32::from(id), SeqCst);
}

/// An id names one domain. There is none only when all are taken: whoever interrupted the call is through with what it did, so that was so
/// before the call or is so now.
fn check_take(world: &World<'_>, hand: &Hand) {
    let Some(units) = &world.units else { return };
    let id = hand.outcome.load(SeqCst) as u16;
    let others = units.taken.iter().any(|taken| taken.load(SeqCst) == id);
    units.taken[hand.level].store(id, SeqCst);
    units.busy[hand.level].store(false, SeqCst);
    let right = if id > 0 {
        !others && id <= IDS
    } else {
        units.before[hand.level].load(SeqCst).max(units.ids_taken()) >= IDS
    };
    if !right {
        world.report(Violation::Outcome);
    }
}

fn let_go_of_id(world: &World<'_>, hand: &Hand) -> bool {
    let Some(units) = &world.units else { return false };
    let Some(id) = units.id_of(hand.level) else { return false };
    units.busy[hand.level].store(true, SeqCst);
    units.taken[hand.level].store(0, SeqCst);
    hand.outcome.store(u32::from(id.get()), SeqCst);
    true
}

extern "C" fn give(world: &World<'_>, hand: &Hand) {
    let Some(units) = &world.units else { return };
    let id = DomainId::new(hand.outcome.load(SeqCst) as u16);
    let given = id.is_some_and(|id| units.ids.give(id).is_ok());
    hand.outcome.store(if given { DONE } else { WRONG }, SeqCst);
}

fn check_give(world: &World<'_>, hand: &Hand) {
    world.units.iter().for_each(|units| units.busy[hand.level].store(false, SeqCst));
    check(world, hand);
}

impl<'w> Units<'w> {
    /// Nothing but the device that all share.
    pub fn new(pool: &'w Pool<'w>) -> Self {
        let scalable = ScalableTables::new(UNIT, 39, pool).unwrap();
        let _ =
            scalable.attach_device(SHARED, DeviceConfig { pasids: true, ..DeviceConfig::default() }).unwrap();
        Self {
            legacy: LegacyTables::new(UNIT, 39, pool).unwrap(),
            scalable,
            ids: DomainIds::new(u32::from(IDS) + 1),
            attached: [const { [const { AtomicBool::new(false) }; THINGS.len()] }; LEVELS],
            taken: [const { AtomicU16::new(0) }; LEVELS],
            busy: [const { AtomicBool::new(false) }; LEVELS],
            before: [const { AtomicU16::new(0) }; LEVELS],
        }
    }

    fn has(&self, level: usize, thing: Thing) -> bool {
        self.attached[level][thing as usize].load(SeqCst)
    }

    fn id_of(&self, level: usize) -> Option<DomainId> {
        DomainId::new(self.taken[level].load(SeqCst))
    }

    /// How many contexts have an id, or may have one.
    fn ids_taken(&self) -> u16 {
        let may_have = |(id, busy): (&AtomicU16, &AtomicBool)| id.load(SeqCst) != 0 || busy.load(SeqCst);
        self.taken.iter().zip(&self.busy).map(|both| u16::from(may_have(both))).sum()
    }

    /// Whether the entry of a context is there as it should be, or not at all.
    fn is_right(&self, level: usize, thing: Thing) -> bool {
        let attached = self.has(level, thing);
        match thing {
            Thing::Legacy => self.legacy.entry(device(level)) == Ok(attached.then(|| context_entry(level))),
            Thing::Device => {
                self.scalable.device(device(level)).is_ok_and(|entry| entry.is_some() == attached)
            }
            Thing::Pasid => {
                // SAFETY: nobody detaches the device.
                let entry = unsafe { self.scalable.entry(SHARED, pasid(level)) };
                entry == Ok(attached.then(|| pasid_entry(level)))
            }
        }
    }

    pub fn table_frames(&self) -> u64 {
        self.legacy.table_frames() + self.scalable.table_frames()
    }

    /// Gives back all tables, with what is attached.
    pub fn close(self) {
        // SAFETY: no unit reads these tables.
        unsafe {
            self.legacy.close().complete();
            self.scalable.close().complete();
        }
    }
}

impl World<'_> {
    /// Attaches what the situation says, and takes ids as long as there are some.
    pub fn attach_in_advance(&self, mine: bool, theirs: bool) {
        for level in (0..LEVELS).filter(|&level| if level == 0 { mine } else { theirs }) {
            [&ATTACH_LEGACY, &ATTACH_DEVICE, &ATTACH_PASID, &TAKE]
                .iter()
                .for_each(|operation| self.must_perform(operation, level));
        }
    }

    /// Shows `place` every table of a unit: those that a root table links, and below it directories and what those link.
    pub fn for_each_unit_table(&self, place: &mut impl FnMut(PhysAddr)) {
        let Some(units) = &self.units else { return };
        self.for_each_linked(units.legacy.root(), &[2], place);
        self.for_each_linked(units.scalable.root(), &[1, 4, 1], place);
    }

    /// The table and what it links: `steps` says for each level how many words the links stand apart.
    fn for_each_linked(&self, table: PhysAddr, steps: &[usize], place: &mut impl FnMut(PhysAddr)) {
        place(table);
        let ([step, below @ ..], Some(_)) = (steps, number_of(table)) else { return };
        let words = self.supply().pointer(table).cast::<AtomicU64>();
        for index in (0..512).step_by(*step) {
            // SAFETY: a frame has 512 words, and it is mapped.
            let word = unsafe { words.add(index).as_ref() }.load(SeqCst);
            if word & 1 != 0 {
                self.for_each_linked(PhysAddr::new(word & 0x000F_FFFF_FFFF_F000), below, place);
            }
        }
    }

    /// Every entry is there as it was attached, or not at all, and so is every id.
    pub fn audit_units(&self) -> Result<(), String> {
        let Some(units) = &self.units else { return Ok(()) };
        for level in 0..LEVELS {
            if let Some(thing) = THINGS.into_iter().find(|&thing| !units.is_right(level, thing)) {
                return Err(format!("the entry of {thing:?} of {level} is not what it should be"));
            }
        }
        let free = std::iter::from_fn(|| units.ids.take()).count();
        if free + usize::from(units.ids_taken()) != usize::from(IDS) {
            return Err(format!("{free} ids are free, {} are taken, of {IDS}", units.ids_taken()));
        }
        Ok(())
    }
}
