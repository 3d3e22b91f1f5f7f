//! Owns the device scopes: the lists in the structures that say which devices are meant (VT-d specification, section 8.3.1).

use super::bytes::u8_at;
use crate::vtd::SourceId;
use core::fmt;

/// The bytes of a scope before its path.
const HEADER: usize = 6;

/// What a device scope names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScopeKind {
    /// A PCI device.
    Endpoint,
    /// A PCI bridge and all below it.
    SubHierarchy,
    /// An I/O APIC, by its id.
    IoApic,
    /// A timer block that sends interrupt messages, by its number.
    Hpet,
    /// A device that has a name in the ACPI namespace, by its number; see [`NamespaceDevice`](super::NamespaceDevice).
    Namespace,
    /// A type that this version of the crate does not know.
    Other(u8),
}

/// One device of a structure, or one part of the device tree.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DeviceScope<'t> {
    /// What is named.
    pub kind: ScopeKind,
    /// Flags, of which only some structures use some.
    pub flags: u8,
    /// The id of the I/O APIC, the number of the timer block, or the number of the namespace device; else 0.
    pub enumeration_id: u8,
    /// The bus on which the path starts.
    pub start_bus: u8,
    path: &'t [u8],
}

impl<'t> DeviceScope<'t> {
    /// The way from the start bus to the device, as device and function of each bridge and at last of the device itself.
    ///
    /// Any context; constant time for a step.
    pub fn path(&self) -> impl Iterator<Item = (u8, u8)> + use<'t> {
        self.path.chunks_exact(2).filter_map(|step| Some((u8_at(step, 0)?, u8_at(step, 1)?)))
    }

    /// The source id of the device, if it is on the start bus itself. Behind bridges it depends on the bus numbers that these were
    /// given: follow [`path`](Self::path) through their configuration.
    pub fn source_id(&self) -> Option<SourceId> {
        let mut path = self.path();
        let (device, function) = path.next()?;
        if path.next().is_some() { None } else { SourceId::new(self.start_bus, device, function) }
    }
}

impl fmt::Debug for DeviceScope<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} {:02x}", self.kind, self.start_bus)?;
        for (device, function) in self.path() {
            write!(formatter, ":{device:02x}.{function}")?;
        }
        Ok(())
    }
}

/// The device scopes of a structure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DeviceScopes<'t> {
    rest: &'t [u8],
}

impl<'t> DeviceScopes<'t> {
    /// The scopes in `bytes`, or nothing if one of them has a wrong length.
    pub(super) fn checked(bytes: &'t [u8]) -> Option<Self> {
        let mut scopes = Self { rest: bytes };
        scopes.by_ref().for_each(drop);
        scopes.rest.is_empty().then_some(Self { rest: bytes })
    }
}

impl<'t> Iterator for DeviceScopes<'t> {
    type Item = DeviceScope<'t>;

    fn next(&mut self) -> Option<DeviceScope<'t>> {
        let length = usize::from(u8_at(self.rest, 1)?);
        let (scope, rest) = self.rest.split_at_checked(length)?;
        let path = scope.get(HEADER..).filter(|path| !path.is_empty() && path.len() % 2 == 0)?;
        let kind = match u8_at(scope, 0)? {
            1 => ScopeKind::Endpoint,
            2 => ScopeKind::SubHierarchy,
            3 => ScopeKind::IoApic,
            4 => ScopeKind::Hpet,
            5 => ScopeKind::Namespace,
            other => ScopeKind::Other(other),
        };
        let (flags, enumeration_id, start_bus) = (u8_at(scope, 2)?, u8_at(scope, 4)?, u8_at(scope, 5)?);
        self.rest = rest;
        Some(DeviceScope { kind, flags, enumeration_id, start_bus, path })
    }
}

impl fmt::Debug for DeviceScopes<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(*self).finish()
    }
}
