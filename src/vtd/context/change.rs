//! Owns what a change of an entry leaves to be told to the unit, and in which order (VT-d specification, section 6.5.3.3, "Guidance
//! to Software for Invalidations").

use super::{
    legacy::ContextEntry,
    pasid::{PasidEntry, PasidTranslation},
};
use crate::vtd::{
    Capabilities, ContextSelection, Descriptor, DomainId, FunctionMask, IotlbSelection, Pasid,
    PasidSelection, SourceId,
};

/// What the unit must be told after an entry has changed: each of [`steps`](Self::steps), in order, the one before being complete.
///
/// For a device with a TLB of its own, a [`Descriptor::DeviceTlb`] for all addresses follows the last step of a removal.
#[must_use = "until the unit has been told, it may go by what was there before"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryChange {
    steps: [Option<Descriptor>; 3],
    write_buffer_flush: bool,
}

impl EntryChange {
    /// The descriptors to submit, with a wait for each before the next: what is cached of translations was found by the entries.
    pub fn steps(&self) -> impl Iterator<Item = Descriptor> + use<> {
        self.steps.into_iter().flatten()
    }

    /// Whether the unit's write buffer must be flushed (GCMD_REG.WBF), because nothing is invalidated.
    pub const fn needs_write_buffer_flush(&self) -> bool {
        self.write_buffer_flush
    }

    fn of(steps: [Option<Descriptor>; 3], unit: Capabilities) -> Self {
        let told = steps.iter().any(Option::is_some);
        Self { steps, write_buffer_flush: !told && unit.needs_write_buffer_flush() }
    }

    /// An entry became present that was not. Only caching mode remembers what is not present, under domain id 0.
    fn made_present(steps: [Option<Descriptor>; 3], unit: Capabilities) -> Self {
        Self::of(if unit.caching_mode() { steps } else { [None; 3] }, unit)
    }

    pub(super) fn attached(source: SourceId, entry: ContextEntry, unit: Capabilities) -> Self {
        let steps = [Some(device(None, source)), Some(domain(entry.domain_id, unit)), None];
        Self::made_present(steps, unit)
    }

    pub(super) fn detached(source: SourceId, entry: ContextEntry, unit: Capabilities) -> Self {
        let id = entry.domain_id;
        Self::of([Some(device(Some(id), source)), Some(domain(id, unit)), None], unit)
    }

    pub(super) fn device_attached(source: SourceId, unit: Capabilities) -> Self {
        Self::made_present([Some(device(None, source)), None, None], unit)
    }

    /// All PASIDs of a device went with its entry, whatever domains they named.
    pub(super) fn device_detached(source: SourceId, unit: Capabilities) -> Self {
        let all = Descriptor::PasidCache(PasidSelection::All);
        Self::of([Some(device(None, source)), Some(all), Some(iotlb(IotlbSelection::All, unit))], unit)
    }

    pub(super) fn pasid_attached(pasid: Pasid, entry: PasidEntry, unit: Capabilities) -> Self {
        let all = Descriptor::PasidCache(PasidSelection::All);
        let [first, second] = translations(pasid, entry, unit);
        Self::made_present([Some(all), first, second], unit)
    }

    pub(super) fn pasid_detached(pasid: Pasid, entry: PasidEntry, unit: Capabilities) -> Self {
        let one = Descriptor::PasidCache(PasidSelection::Pasid(entry.domain_id, pasid));
        let [first, second] = translations(pasid, entry, unit);
        Self::of([Some(one), first, second], unit)
    }
}

/// The context entry of a device.
fn device(domain: Option<DomainId>, source: SourceId) -> Descriptor {
    Descriptor::ContextCache(ContextSelection::Device { domain, source, functions: FunctionMask::One })
}

fn iotlb(selection: IotlbSelection, unit: Capabilities) -> Descriptor {
    Descriptor::Iotlb { selection, drain_reads: unit.drains_reads(), drain_writes: unit.drains_writes() }
}

/// All translations of a domain.
fn domain(id: DomainId, unit: Capabilities) -> Descriptor {
    iotlb(IotlbSelection::Domain(id), unit)
}

/// What is cached of translations that were found by a PASID entry: those of the first stage under the PASID, those of the second and
/// nested ones under the domain, those that are none under either.
fn translations(pasid: Pasid, entry: PasidEntry, unit: Capabilities) -> [Option<Descriptor>; 2] {
    let under_pasid = Descriptor::PasidIotlb { domain: entry.domain_id, pasid, pages: None };
    let under_domain = domain(entry.domain_id, unit);
    match entry.translation {
        PasidTranslation::FirstStage(_) => [Some(under_pasid), None],
        PasidTranslation::SecondStage(_) => [Some(under_domain), None],
        PasidTranslation::Nested(..) | PasidTranslation::PassThrough { .. } => {
            [Some(under_pasid), Some(under_domain)]
        }
    }
}
