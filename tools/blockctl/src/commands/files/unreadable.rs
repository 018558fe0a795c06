//! Files and directories that cannot be read in a snapshot, beside those that can.

use crate::{
    failure::{EXIT_DONE, EXIT_FAILED, Failure},
    output::Output,
};
use blockd_api::{ClientError, ErrorCode, browse::FilePath};
use schemars::JsonSchema;
use serde::Serialize;

/// Maximum number of listed unreadable files; all are counted.
const MAX_NAMED: usize = 100;

/// Files that a command left out because they cannot be read.
#[derive(Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Unreadable {
    /// Files, links and directories that cannot be read in the snapshot.
    #[serde(rename = "unreadable")]
    pub count: u64,
    /// First of them with the causes.
    #[serde(rename = "unreadableFiles")]
    files: Vec<UnreadableFile>,
}

/// File that cannot be read in the snapshot.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnreadableFile {
    path: FilePath,
    reason: String,
}

impl Unreadable {
    /// Counts a file that cannot be read; returns true if it is listed.
    pub fn add(&mut self, path: FilePath, reason: String) -> bool {
        self.count += 1;
        let is_listed = self.files.len() < MAX_NAMED;
        if is_listed {
            self.files.push(UnreadableFile { path, reason });
        }
        is_listed
    }

    /// Passes on a result, or counts the file if the failure is only about it.
    ///
    /// # Errors
    /// The failure concerns all files.
    pub fn skip<T>(&mut self, path: &FilePath, result: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match result {
            Err(failure) if is_of_file(&failure) => {
                self.add(path.clone(), failure.to_string());
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Prints the files and their number.
    pub fn report(&self, output: &Output) {
        self.files.iter().for_each(|file| output.note(format!("not listed: {}", file.reason)));
        if self.count > 0 {
            output.note(format!("{} cannot be read in the snapshot", files_or_directories(self.count)));
        }
    }

    /// Returns the exit status: a failure if files were left out.
    pub fn exit_status(&self) -> u8 {
        if self.count == 0 { EXIT_DONE } else { EXIT_FAILED }
    }
}

/// Returns a number of files or directories in words.
pub fn files_or_directories(count: u64) -> String {
    match count {
        1 => "1 file or directory".to_owned(),
        _ => format!("{count} files or directories"),
    }
}

/// Returns true for a failure that only one file of the snapshot has. An unreachable store or daemon, or a
/// destination that cannot be written, concerns all.
pub fn is_of_file(failure: &Failure) -> bool {
    match failure {
        Failure::Client(ClientError::Api(error)) => matches!(
            error.code,
            // Damage, a directory with too many entries, and a partition with another filesystem.
            ErrorCode::CloudsnapDamaged
                | ErrorCode::InvalidRequest
                | ErrorCode::NoFiles
                | ErrorCode::FileNotFound
        ),
        Failure::Local { code, .. } => *code == ErrorCode::CloudsnapDamaged.as_str(),
        _ => false,
    }
}
