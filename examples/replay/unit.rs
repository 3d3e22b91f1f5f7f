//! Owns what stands behind the tables: nothing, or the strict model unit, which is told what the invalidations say and no more, and
//! asked as a device asks.
//!
//! A device never looks while a call is in progress, since the unit reports what is not yet told; that needs a lock, so there are
//! no interrupts then.

use crate::trace::{Event, Operation};
use clap::ValueEnum;
use framepool::vtd::{
    Capabilities, CapabilityError, Descriptor, DomainConfig, DomainId, Fault, Format, Invalidation,
    IotlbSelection, Iova, Levels, ModelUnit, Pasid, Permissions, Stage, TableFrames, TranslationMode, Wait,
};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

const PAGE: u64 = 4096;

/// What a driver submits that takes its domains apart.
pub const FORGET_ALL: [Descriptor; 2] = [
    Descriptor::Iotlb { selection: IotlbSelection::All, drain_reads: false, drain_writes: false },
    Descriptor::Wait(Wait { status: None, interrupt: false, fence: false, drain_page_requests: false }),
];

/// A unit by what its capability registers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A unit that snoops, tables of the second stage.
    SecondStage,
    /// The same in scalable mode, tables of the first stage.
    FirstStage,
    /// A unit that does not snoop its tables.
    Incoherent,
    /// A unit that remembers what is not present.
    CachingMode,
    /// A unit without large leaves.
    SmallPages,
}

impl Kind {
    pub fn stage(self) -> Stage {
        if self == Self::FirstStage { Stage::First } else { Stage::Second }
    }

    /// CAP_REG and ECAP_REG.
    fn registers(self) -> (u64, u64) {
        // 48 bits of address and 4 levels, leaves of 2 MiB and 1 GiB, masks up to 18; queued invalidation.
        let (capability, extended) = (0x00d2_008c_222f_0606, 0x00f0_0f4a);
        let coherent = extended | 1;
        match self {
            Self::SecondStage => (capability, coherent),
            // FS1GP; SMTS, FSTS and SMPWCS.
            Self::FirstStage => (capability | 1 << 56, coherent | 1 << 43 | 1 << 47 | 1 << 48),
            Self::Incoherent => (capability, extended),
            Self::CachingMode => (capability | 1 << 7, coherent),
            Self::SmallPages => (capability & !(3 << 34), coherent),
        }
    }

    /// The shape of a domain behind such a unit.
    pub fn config<F: Format>(self, levels: Levels) -> Result<DomainConfig, CapabilityError> {
        let (capability, extended) = self.registers();
        let mode = if self == Self::FirstStage { TranslationMode::Scalable } else { TranslationMode::Legacy };
        let unit = Capabilities::from_registers(capability, extended);
        DomainConfig::from_capabilities::<F>(levels, mode, 52, &[unit])
    }
}

/// What stands behind the tables of the domains.
pub struct Behind<'u, U: TableFrames> {
    pub unit: Option<&'u ModelUnit<U>>,
    /// Shared by calls, held alone by a device that looks.
    in_progress: RwLock<()>,
}

/// The id of a domain of the trace.
pub fn id_of(domain: u16) -> DomainId {
    DomainId::new(domain + 1).unwrap_or(DomainId::FIRST)
}

impl<'u, U: TableFrames> Behind<'u, U> {
    pub fn new(unit: Option<&'u ModelUnit<U>>) -> Self {
        Self { unit, in_progress: RwLock::new(()) }
    }

    /// Keeps devices away while a call changes tables.
    pub fn enter(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.unit.map(|_| self.in_progress.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells the unit what is left to be done, and completes it.
    pub fn complete<A: TableFrames>(&self, stage: Stage, invalidation: Invalidation<'_, A>) {
        if let Some(unit) = self.unit {
            let wait = Some(Wait::default());
            let queue: Vec<_> = match stage {
                Stage::First => invalidation.pasid_descriptors(Pasid::default(), wait).collect(),
                Stage::Second => invalidation.descriptors(wait).collect(),
            };
            unit.submit(&queue);
        }
        // SAFETY: there is no hardware but the unit, which has forgotten what it was told to forget.
        unsafe { invalidation.complete() };
    }

    /// Lets a device access every page of the event, which has happened and been told: how many are not as the event says.
    pub fn access(&self, event: &Event) -> u64 {
        let Some(unit) = self.unit else { return 0 };
        let _alone = self.in_progress.write().unwrap_or_else(PoisonError::into_inner);
        let mut wrong = 0;
        for (index, page) in (0..).zip(event.pages()) {
            for (write, needed) in [(false, Permissions::READ), (true, Permissions::WRITE)] {
                let got = unit.access(id_of(event.domain), Iova::new(page * PAGE), write);
                let is_right = match event.operation {
                    Operation::Map { target, permissions } if permissions.contains(needed) => {
                        got.map(|target| target.as_u64()) == Ok(target + index * PAGE)
                    }
                    Operation::Map { .. } => got == Err(Fault::Denied),
                    _ => matches!(got, Err(Fault::NotPresent { .. })),
                };
                wrong += u64::from(!is_right);
            }
        }
        wrong
    }
}
