//! Features of a filesystem (section "The Super Block": `s_feature_compat`, `s_feature_incompat`,
//! `s_feature_ro_compat`).

use crate::ExtError;

/// Features that matter here, as bits of the three words.
pub(crate) mod bit {
    pub const COMPAT_HAS_JOURNAL: u32 = 0x4;
    pub const COMPAT_SPARSE_SUPER2: u32 = 0x200;

    pub const INCOMPAT_RECOVER: u32 = 0x4;
    pub const INCOMPAT_META_BG: u32 = 0x10;
    pub const INCOMPAT_64BIT: u32 = 0x80;
    pub const INCOMPAT_CSUM_SEED: u32 = 0x2000;
    pub const INCOMPAT_LARGEDIR: u32 = 0x4000;

    pub const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
    pub const RO_COMPAT_HUGE_FILE: u32 = 0x8;
    pub const RO_COMPAT_GDT_CSUM: u32 = 0x10;
    pub const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
}

/// Features without which nothing can be read rightly: bit, name, and whether it is read here.
const INCOMPATIBLE: [(u32, &str, bool); 16] = [
    (0x1, "compression", false),
    (0x2, "filetype", true),
    (0x4, "needs_recovery", true),
    (0x8, "journal_dev", false),
    (0x10, "meta_bg", true),
    (0x40, "extents", true),
    (0x80, "64bit", true),
    (0x100, "mmp", true),
    (0x200, "flex_bg", true),
    (0x400, "ea_inode", true),
    (0x1000, "dirdata", false),
    (0x2000, "metadata_csum_seed", true),
    (0x4000, "large_dir", true),
    (0x8000, "inline_data", true),
    // Each encrypted file is refused by itself.
    (0x1_0000, "encrypt", true),
    // Names are bytes here: they are shown as they were given, and found so.
    (0x2_0000, "casefold", true),
];

/// The three words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Features {
    pub compat: u32,
    pub incompat: u32,
    pub ro_compat: u32,
}

impl Features {
    pub fn has_compat(self, bit: u32) -> bool {
        self.compat & bit != 0
    }

    pub fn has_incompat(self, bit: u32) -> bool {
        self.incompat & bit != 0
    }

    /// Returns true for a feature that concerns writers only; unknown ones are ignored.
    pub fn has_ro_compat(self, bit: u32) -> bool {
        self.ro_compat & bit != 0
    }

    /// Checks that all features needed for reading are supported.
    pub fn check(self) -> Result<(), ExtError> {
        let mut unread = Vec::new();
        for at in 0..u32::BITS {
            let bit = 1 << at;
            if !self.has_incompat(bit) {
                continue;
            }
            match INCOMPATIBLE.iter().find(|(known, ..)| *known == bit) {
                Some((_, _, true)) => {}
                Some((_, name, false)) => unread.push((*name).to_owned()),
                None => unread.push(format!("a feature that is unknown here (incompatible, {bit:#x})")),
            }
        }
        if unread.is_empty() { Ok(()) } else { Err(ExtError::unsupported(unread.join(" and "))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(incompat: u32) -> String {
        Features { compat: 0, incompat, ro_compat: !0 }.check().unwrap_err().to_string()
    }

    #[test]
    fn unsupported_filesystem_is_named() {
        assert!(Features { compat: !0, incompat: 0x3_e7d6, ro_compat: !0 }.check().is_ok());
        assert!(said(0x1).contains("compression") && said(0x8).contains("journal_dev"));
        assert!(said(0x1000 | 0x2).contains("dirdata"));
        assert!(said(0x20).contains("0x20") && said(0x8000_0000).contains("0x80000000"));
    }
}
