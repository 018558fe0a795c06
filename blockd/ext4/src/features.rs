//! Features of a filesystem (section "The Super Block": `s_feature_compat`, `s_feature_incompat`,
//! `s_feature_ro_compat`).

use crate::ExtError;

/// Feature bits that change how a filesystem is read.
pub(crate) mod bit {
    pub const COMPAT_HAS_JOURNAL: u32 = 0x4;
    pub const COMPAT_RESIZE_INODE: u32 = 0x10;
    pub const COMPAT_SPARSE_SUPER2: u32 = 0x200;
    pub const COMPAT_ORPHAN_FILE: u32 = 0x1000;

    pub const INCOMPAT_FILETYPE: u32 = 0x2;
    pub const INCOMPAT_RECOVER: u32 = 0x4;
    pub const INCOMPAT_META_BG: u32 = 0x10;
    pub const INCOMPAT_EXTENTS: u32 = 0x40;
    pub const INCOMPAT_64BIT: u32 = 0x80;
    pub const INCOMPAT_MMP: u32 = 0x100;
    pub const INCOMPAT_FLEX_BG: u32 = 0x200;
    pub const INCOMPAT_CSUM_SEED: u32 = 0x2000;
    pub const INCOMPAT_LARGEDIR: u32 = 0x4000;

    pub const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
    pub const RO_COMPAT_HUGE_FILE: u32 = 0x8;
    pub const RO_COMPAT_GDT_CSUM: u32 = 0x10;
    pub const RO_COMPAT_DIR_NLINK: u32 = 0x20;
    pub const RO_COMPAT_QUOTA: u32 = 0x100;
    pub const RO_COMPAT_BIGALLOC: u32 = 0x200;
    pub const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
}

/// Known incompatible features: bit, name, and true if supported.
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
    // Encrypted inodes are refused one by one.
    (0x1_0000, "encrypt", true),
    // Lookups compare names byte by byte, so they are case-sensitive here.
    (0x2_0000, "casefold", true),
];

/// Feature words of the superblock.
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

    /// Returns true if a read-only compatible feature is set. Readers may ignore unknown ones.
    pub fn has_ro_compat(self, bit: u32) -> bool {
        self.ro_compat & bit != 0
    }

    /// Checks that all incompatible features are supported.
    pub fn check(self) -> Result<(), ExtError> {
        let mut unsupported = Vec::new();
        for at in 0..u32::BITS {
            let bit = 1 << at;
            if !self.has_incompat(bit) {
                continue;
            }
            match INCOMPATIBLE.iter().find(|(known, ..)| *known == bit) {
                Some((_, _, true)) => {}
                Some((_, name, false)) => unsupported.push((*name).to_owned()),
                None => unsupported.push(format!("unknown incompatible feature {bit:#x}")),
            }
        }
        if unsupported.is_empty() { Ok(()) } else { Err(ExtError::unsupported(unsupported.join(" and "))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(incompat: u32) -> String {
        Features { compat: 0, incompat, ro_compat: !0 }.check().unwrap_err().to_string()
    }

    #[test]
    fn unsupported_incompatible_feature_is_named() {
        assert!(Features { compat: !0, incompat: 0x3_e7d6, ro_compat: !0 }.check().is_ok());
        assert!(message(0x1).contains("compression") && message(0x8).contains("journal_dev"));
        assert!(message(0x1000 | 0x2).contains("dirdata"));
        assert!(message(0x20).contains("0x20") && message(0x8000_0000).contains("0x80000000"));
    }
}
