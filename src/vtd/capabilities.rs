//! Owns what the capability registers of a unit say (VT-d specification, section 11.4.2, CAP_REG, and 11.4.3, ECAP_REG; sections
//! 10.4.2 and 10.4.3 in revisions before 3.0).

use super::{
    bits::{bit, field},
    format::Stage,
    width::{Levels, PageSizes},
};
use core::fmt;

/// What the root table of a unit points to (RTADDR_REG.TTM).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TranslationMode {
    /// Context entries of 128 bits, second stage only.
    Legacy,
    /// Context entries of 256 bits and PASID tables, both stages.
    Scalable,
}

/// The capability registers of one unit.
///
/// Every method is a constant-time decoding, for any context.
///
/// ```
/// use framepool::vtd::{Capabilities, Levels, PageSizes, Stage};
/// // As read at offsets 0x08 and 0x10 of the unit's registers.
/// let unit = Capabilities::from_registers(0x00d2_008c_222f_0606, 0x00f0_0f4a);
/// assert_eq!(unit.most_levels(Stage::Second), Some(Levels::Four));
/// assert_eq!(unit.page_sizes(Stage::Second), PageSizes::all());
/// assert_eq!(unit.page_selective(), Some(18));
/// assert!(!unit.snoops_tables(), "changed lines must be flushed");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Capabilities {
    capability: u64,
    extended: u64,
}

impl Capabilities {
    /// The unit whose registers have these values: CAP_REG (offset 0x08) and ECAP_REG (offset 0x10).
    pub const fn from_registers(capability: u64, extended: u64) -> Self {
        Self { capability, extended }
    }

    /// Whether the unit walks tables of `stage` with `levels` levels: SAGAW for the second stage; FSTS and FS5LP for the first,
    /// which has 4 or 5.
    pub const fn takes(self, stage: Stage, levels: Levels) -> bool {
        match (stage, levels) {
            (Stage::Second, _) => bit(self.capability, 6 + levels.count()),
            (Stage::First, Levels::Three) => false,
            (Stage::First, Levels::Four) => self.has_first_stage(),
            (Stage::First, Levels::Five) => self.has_first_stage() && bit(self.capability, 60),
        }
    }

    /// The most levels that the unit walks in `stage`, if it has that stage.
    pub fn most_levels(self, stage: Stage) -> Option<Levels> {
        [Levels::Five, Levels::Four, Levels::Three].into_iter().find(|&levels| self.takes(stage, levels))
    }

    /// The large leaves of `stage`: SSLPS for the second; 2 MiB always and 1 GiB with FS1GP for the first.
    pub const fn page_sizes(self, stage: Stage) -> PageSizes {
        match stage {
            Stage::Second => PageSizes::from_bits_truncate(field(self.capability, 34, 2) as u8),
            Stage::First if bit(self.capability, 56) => PageSizes::all(),
            Stage::First => PageSizes::SIZE_2M,
        }
    }

    /// How many bits an IOVA may have at most (MGAW).
    pub const fn guest_address_width(self) -> u8 {
        field(self.capability, 16, 6) as u8 + 1
    }

    /// How many bits an IOVA has in a domain of `levels` levels of `stage`: what the levels translate or what the unit takes,
    /// whichever is less. The addresses of the first stage are sign-extended, of which only the half without the sign is used:
    /// one bit less.
    pub fn address_width(self, stage: Stage, levels: Levels) -> u8 {
        levels.address_width().min(self.guest_address_width()) - stage.sign_bits()
    }

    /// How many domain ids the unit has, 0 included (ND).
    pub const fn domain_ids(self) -> u32 {
        let exponent = 4 + 2 * field(self.capability, 0, 3);
        1 << if exponent > 16 { 16 } else { exponent }
    }

    /// Whether the unit caches what is not present (CM): then making an entry present needs an invalidation too. For second-stage
    /// and context entries; the first stage never needs it.
    pub const fn caching_mode(self) -> bool {
        bit(self.capability, 7)
    }

    /// Whether the unit's write buffer must be flushed before it sees an entry that became present without an invalidation (RWBF).
    pub const fn needs_write_buffer_flush(self) -> bool {
        bit(self.capability, 4)
    }

    /// Whether the unit invalidates pages instead of whole domains, and 2 to which power of them at most at once (PSI, MAMV).
    pub const fn page_selective(self) -> Option<u8> {
        if bit(self.capability, 39) { Some(field(self.capability, 48, 6) as u8) } else { None }
    }

    /// Whether an invalidation can wait for the reads in flight (DRD).
    pub const fn drains_reads(self) -> bool {
        bit(self.capability, 55)
    }

    /// Whether an invalidation can wait for the writes in flight (DWD).
    pub const fn drains_writes(self) -> bool {
        bit(self.capability, 54)
    }

    /// Whether a read of no bytes is allowed from a page that is only writable (ZLR).
    pub const fn zero_length_reads(self) -> bool {
        bit(self.capability, 22)
    }

    /// Whether setting the root table pointer invalidates all caches (ESRTPS); otherwise software must.
    pub const fn set_root_invalidates(self) -> bool {
        bit(self.capability, 63)
    }

    /// Where the fault recording registers start, in bytes from the first register (FRO).
    pub const fn fault_records_offset(self) -> u64 {
        field(self.capability, 24, 10) * 16
    }

    /// How many fault recording registers of 16 bytes there are (NFR).
    pub const fn fault_records(self) -> u32 {
        field(self.capability, 40, 8) as u32 + 1
    }

    /// Where IVA_REG is, in bytes from the first register; IOTLB_REG follows it (IRO).
    pub const fn iotlb_registers_offset(self) -> u64 {
        field(self.extended, 8, 10) * 16
    }

    /// Whether the unit snoops the processor's caches when it reads root, context and PASID tables, and in legacy mode the
    /// tables of domains (C).
    pub const fn snoops_tables(self) -> bool {
        bit(self.extended, 0)
    }

    /// Whether the unit snoops when it walks the tables of domains: C in legacy mode, SMPWCS in scalable mode.
    pub const fn snoops_walks(self, mode: TranslationMode) -> bool {
        match mode {
            TranslationMode::Legacy => self.snoops_tables(),
            TranslationMode::Scalable => bit(self.extended, 48),
        }
    }

    /// Whether software may demand that accesses to memory are snooped: SNP in a leaf, PGSNP in a PASID entry (SC).
    pub const fn snoop_control(self) -> bool {
        bit(self.extended, 7)
    }

    /// Whether the unit has an invalidation queue (QI).
    pub const fn queued_invalidation(self) -> bool {
        bit(self.extended, 1)
    }

    /// Whether devices may have TLBs of their own (DT).
    pub const fn device_tlb(self) -> bool {
        bit(self.extended, 2)
    }

    /// Whether the unit remaps interrupts (IR).
    pub const fn interrupt_remapping(self) -> bool {
        bit(self.extended, 3)
    }

    /// Whether a device can be passed through without translation (PT).
    pub const fn pass_through(self) -> bool {
        bit(self.extended, 6)
    }

    /// Whether first-stage tables can be nested into second-stage tables (NEST).
    pub const fn nesting(self) -> bool {
        bit(self.extended, 26)
    }

    /// Whether requests may carry a PASID, and of how many bits (PASID, PSS).
    pub const fn pasid_bits(self) -> Option<u8> {
        if bit(self.extended, 40) { Some(field(self.extended, 35, 5) as u8 + 1) } else { None }
    }

    /// Whether requests without a PASID may be translated by another than PASID 0 (RPS).
    pub const fn default_pasids(self) -> bool {
        bit(self.extended, 49)
    }

    /// Whether the unit has scalable mode, and with it descriptors of 256 bits (SMTS).
    pub const fn scalable_mode(self) -> bool {
        bit(self.extended, 43)
    }

    /// Whether hardware sets the accessed and dirty bits of second-stage entries if a PASID entry says so (SSADS).
    pub const fn second_stage_accessed_dirty(self) -> bool {
        bit(self.extended, 45)
    }

    /// Whether requests may have the rights of a supervisor (SRS).
    pub const fn supervisor_requests(self) -> bool {
        bit(self.extended, 31)
    }

    /// Whether devices may ask for pages (PRS).
    pub const fn page_requests(self) -> bool {
        bit(self.extended, 29)
    }

    /// Whether the unit translates with second-stage tables in `mode`: in legacy mode always, in scalable mode with SSTS.
    pub const fn has_second_stage(self, mode: TranslationMode) -> bool {
        match mode {
            TranslationMode::Legacy => true,
            TranslationMode::Scalable => self.scalable_mode() && bit(self.extended, 46),
        }
    }

    /// Whether the unit translates with first-stage tables, which it can in scalable mode only (FSTS).
    pub const fn has_first_stage(self) -> bool {
        self.scalable_mode() && bit(self.extended, 47)
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Capabilities")
            .field("capability", &format_args!("{:#018x}", self.capability))
            .field("extended", &format_args!("{:#018x}", self.extended))
            .finish()
    }
}
