//! Checks the consistency of an ext2, ext3 or ext4 image, read-only: `image_check IMAGE`.

use std::error::Error;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::{fs, io};

use blockd_ext4::{Filesystem, ReadAt, check::Limits};

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

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let file = fs::File::open(std::env::args().nth(1).ok_or("usage: image_check IMAGE")?)?;
    let size_bytes = file.metadata()?.len();
    let filesystem = Filesystem::open(Arc::new(Image { file, size_bytes }))?;
    let report = filesystem.check(Limits::default(), &mut |_progress| ControlFlow::Continue(()))?;
    for finding in &report.findings {
        println!("{finding}");
    }
    if report.more_findings > 0 {
        println!("{} further findings", report.more_findings);
    }
    for part in &report.unchecked {
        println!("not checked: {part}");
    }
    println!(
        "{} inodes, {} directories, {} bytes read",
        report.inodes, report.directories, report.read_bytes
    );
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
