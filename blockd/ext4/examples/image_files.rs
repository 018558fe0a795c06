//! Lists a directory of an ext2, ext3 or ext4 image, or prints a file: `image_files IMAGE [PATH]`.

use std::error::Error;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::{fs, io};

use blockd_ext4::{FileKind, Filesystem, ReadAt};

/// Maximum number of entries to list.
const MAX_ENTRIES: usize = 100_000;

struct Image {
    file: fs::File,
    size_bytes: u64,
}

impl ReadAt for Image {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_exact_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset_bytes)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let file = fs::File::open(args.next().ok_or("usage: image_files IMAGE [PATH]")?)?;
    let path = args.next().unwrap_or_else(|| "/".to_owned());
    let size_bytes = file.metadata()?.len();

    let filesystem = Filesystem::open(Arc::new(Image { file, size_bytes }))?;
    let inode = filesystem.resolve(path.as_bytes())?;
    let mut out = io::stdout().lock();
    if inode.kind == FileKind::Directory {
        for entry in filesystem.read_dir(&inode, MAX_ENTRIES)? {
            let found = filesystem.inode(entry.inode)?;
            write!(out, "{:6o} {:12} ", found.mode, found.size_bytes)?;
            out.write_all(&entry.name)?;
            writeln!(out)?;
        }
        return Ok(());
    }
    let (mut offset_bytes, mut buf) = (0, vec![0; 64 << 10]);
    loop {
        match filesystem.read(&inode, offset_bytes, &mut buf)? {
            0 => return Ok(out.flush()?),
            len => {
                out.write_all(&buf[..len])?;
                offset_bytes += len as u64;
            }
        }
    }
}
