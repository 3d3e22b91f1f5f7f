//! Owns what the units in front of a domain have in common, and turns it into the shape of a domain that all of them take.

use super::{
    Capabilities, TranslationMode,
    domain::DomainConfig,
    format::{Format, Stage},
    width::Levels,
};
use core::{error::Error, fmt};

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
    /// Hardware sets the accessed and dirty bits of second-stage entries where a PASID entry says so (ECAP_REG.SSADS, scalable mode).
    /// In the first stage it always does.
    pub accessed_dirty: bool,
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
        accessed_dirty: false,
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
            accessed_dirty: self.accessed_dirty && other.accessed_dirty,
        }
    }
}

impl Capabilities {
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
            accessed_dirty: self.second_stage_accessed_dirty()
                && stage == Stage::Second
                && mode == TranslationMode::Scalable,
            snoop_control: self.snoop_control() && stage == Stage::Second && mode == TranslationMode::Legacy,
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
