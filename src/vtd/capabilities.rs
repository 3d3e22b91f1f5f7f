//! Owns what the capability registers of a unit say (VT-d specification, section 11.4.2, CAP_REG, and 11.4.3, ECAP_REG; sections
//! 10.4.2 and 10.4.3 in revisions before 3.0), and turns it into the shape of a domain that the unit takes.

use super::{
    bits::{bit, field},
    domain::DomainConfig,
    format::{Format, Stage},
    width::{Levels, PageSizes},
};
use core::{error::Error, fmt};

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

    /// Whether the unit has `stage` in `mode`.
    const fn has(self, stage: Stage, mode: TranslationMode) -> bool {
        match (stage, mode) {
            (Stage::Second, _) => self.has_second_stage(mode),
            (Stage::First, TranslationMode::Legacy) => false,
            (Stage::First, TranslationMode::Scalable) => self.has_first_stage(),
        }
    }

    /// What it demands and offers of a domain in `mode`.
    fn hardware(self, stage: Stage, mode: TranslationMode) -> Hardware {
        Hardware {
            coherent: self.snoops_walks(mode),
            caching_mode: self.caching_mode() && stage == Stage::Second,
            write_buffer_flush: self.needs_write_buffer_flush(),
            page_selective: self.page_selective(),
            drain_reads: self.drains_reads(),
            drain_writes: self.drains_writes(),
            snoop_control: self.snoop_control() && stage == Stage::Second && mode == TranslationMode::Legacy,
        }
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

/// What the units in front of a domain demand of whoever changes its tables, and what they offer.
///
/// ```
/// use framepool::vtd::Hardware;
/// assert!(Hardware::default().coherent && Hardware::default().page_selective.is_none());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// Hardware snoops when it walks the tables; otherwise every changed line must be flushed (ECAP_REG.C or SMPWCS).
    pub coherent: bool,
    /// Hardware caches what is not present, so a map needs an invalidation too (CAP_REG.CM, second stage).
    pub caching_mode: bool,
    /// Hardware has a write buffer, to be flushed after a map that needs no invalidation (CAP_REG.RWBF).
    pub write_buffer_flush: bool,
    /// The largest address mask of a page-selective invalidation: 2 to this power of pages at once (CAP_REG.PSI and MAMV). Without
    /// it whole domains are invalidated.
    pub page_selective: Option<u8>,
    /// An invalidation can wait for the reads in flight (CAP_REG.DRD).
    pub drain_reads: bool,
    /// An invalidation can wait for the writes in flight (CAP_REG.DWD).
    pub drain_writes: bool,
    /// Leaves may carry SNP (ECAP_REG.SC, second stage, legacy mode; in scalable mode the PASID entry says it for all pages).
    pub snoop_control: bool,
}

impl Default for Hardware {
    /// A unit that snoops its tables and caches nothing that is not present, without page-selective invalidation, drains and
    /// snoop control.
    fn default() -> Self {
        Self::SNOOPING
    }
}

impl Hardware {
    /// See [`Default`](Self::default).
    pub(crate) const SNOOPING: Self = Self {
        coherent: true,
        caching_mode: false,
        write_buffer_flush: false,
        page_selective: None,
        drain_reads: false,
        drain_writes: false,
        snoop_control: false,
    };

    /// What both demand, and what both offer.
    fn and(self, other: Self) -> Self {
        Self {
            coherent: self.coherent && other.coherent,
            caching_mode: self.caching_mode || other.caching_mode,
            write_buffer_flush: self.write_buffer_flush || other.write_buffer_flush,
            page_selective: self.page_selective.zip(other.page_selective).map(|(one, two)| one.min(two)),
            drain_reads: self.drain_reads && other.drain_reads,
            drain_writes: self.drain_writes && other.drain_writes,
            snoop_control: self.snoop_control && other.snoop_control,
        }
    }
}

/// Why the units of a domain take no such domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CapabilityError {
    /// No unit was given.
    NoUnit,
    /// A unit does not have this stage in this mode.
    NoSuchStage {
        /// The number of the unit, from 0, in the order given.
        unit: usize,
        /// The stage.
        stage: Stage,
        /// The mode.
        mode: TranslationMode,
    },
    /// A unit does not walk tables of so many levels.
    NoSuchLevels {
        /// The number of the unit, from 0, in the order given.
        unit: usize,
        /// What was asked for.
        levels: Levels,
        /// The most that this unit walks in the stage, if any.
        most: Option<Levels>,
    },
}

impl fmt::Display for CapabilityError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoUnit => {
                write!(formatter, "no unit was given: give the capabilities of all that the domain is behind")
            }
            Self::NoSuchStage { unit, stage, mode } => {
                write!(
                    formatter,
                    "unit {unit} has no {stage:?} stage in {mode:?} mode: use another mode or stage"
                )
            }
            Self::NoSuchLevels { unit, levels, most: Some(most) } => write!(
                formatter,
                "unit {unit} does not walk {} levels: it walks {} at most",
                levels.count(),
                most.count()
            ),
            Self::NoSuchLevels { unit, levels, most: None } => {
                write!(formatter, "unit {unit} walks neither {} levels nor any other number", levels.count())
            }
        }
    }
}

impl Error for CapabilityError {}

impl DomainConfig {
    /// The shape of a domain of the format `F` that all of `units` take, in `levels` levels, for units in `mode`: the large leaves,
    /// the address bits, the snooping and the invalidations that they have in common. `host_address_width` is what the DMAR table
    /// says ([`Dmar::host_address_width`](super::Dmar::host_address_width)).
    ///
    /// A domain of this shape writes no entry that one of the units refuses.
    ///
    /// Any context; bounded by the number of units.
    ///
    /// # Errors
    /// [`CapabilityError`] names the unit that lacks the stage or the levels.
    ///
    /// ```
    /// use framepool::vtd::*;
    /// let unit = Capabilities::from_registers(0x00d2_008c_222f_0606, 0x00f0_0f4a);
    /// let four = DomainConfig::from_capabilities::<SecondStage>(Levels::Four, TranslationMode::Legacy, 39, &[unit])?;
    /// assert_eq!((four.address_width, four.page_sizes), (48, PageSizes::all()));
    /// let refused = DomainConfig::from_capabilities::<SecondStage>(Levels::Five, TranslationMode::Legacy, 39, &[unit]);
    /// assert_eq!(refused.unwrap_err().to_string(), "unit 0 does not walk 5 levels: it walks 4 at most");
    /// # Ok::<(), CapabilityError>(())
    /// ```
    pub fn from_capabilities<F: Format>(
        levels: Levels,
        mode: TranslationMode,
        host_address_width: u8,
        units: &[Capabilities],
    ) -> Result<Self, CapabilityError> {
        let stage = F::STAGE;
        let mut shape: Option<Self> = None;
        for (unit, &capabilities) in units.iter().enumerate() {
            if !capabilities.has(stage, mode) {
                return Err(CapabilityError::NoSuchStage { unit, stage, mode });
            }
            if !capabilities.takes(stage, levels) {
                let most = capabilities.most_levels(stage);
                return Err(CapabilityError::NoSuchLevels { unit, levels, most });
            }
            let this = Self {
                page_sizes: capabilities.page_sizes(stage),
                address_width: capabilities.address_width(stage, levels),
                host_address_width,
                hardware: capabilities.hardware(stage, mode),
                ..Self::new(levels)
            };
            shape = Some(shape.map_or(this, |shape| Self {
                page_sizes: shape.page_sizes & this.page_sizes,
                address_width: shape.address_width.min(this.address_width),
                hardware: shape.hardware.and(this.hardware),
                ..shape
            }));
        }
        shape.ok_or(CapabilityError::NoUnit)
    }
}
