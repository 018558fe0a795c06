//! Listings of a container, and removal of orphaned segments.

use super::{SEGMENTS_PREFIX, SwiftStore, text_of};
use crate::{ListPage, ObjectInfo, Pages, StoreError, StoreErrorKind, check_key};
use reqwest::Method;
use serde::Deserialize;
use std::fmt::Write;

/// Maximum number of objects in a page of a listing.
const MAX_PAGE_OBJECTS: usize = 10_000;
/// Maximum number of segments of an upload (1.6 TB).
const MAX_SEGMENTS: usize = 100_000;
/// Maximum length of a page of a listing and of an object's list of segments, in bytes.
const MAX_PAGE_BYTES: u64 = 32 << 20;

#[derive(Deserialize)]
struct Listed {
    name: String,
    bytes: u64,
    hash: String,
    last_modified: String,
}

/// Parses Swift's time format: UTC, without an offset.
pub(super) fn unix_seconds(text: &str) -> Option<i64> {
    let time: jiff::civil::DateTime = text.parse().ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

/// Escapes a name for a query (RFC 3986, section 2).
fn escaped(name: &str) -> String {
    name.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// Stored segments of an upload.
struct Upload {
    /// Key of the object.
    key: String,
    /// Prefix of the segments.
    prefix: String,
    segments: Vec<String>,
    /// Time of the newest segment; `None` if Swift does not report that of all segments.
    newest_unix_s: Option<i64>,
}

impl Upload {
    fn of(segment: ObjectInfo) -> Option<Self> {
        let (prefix, _) = segment.key.rsplit_once('/')?;
        let (object, _) = prefix.rsplit_once('/')?;
        let key = object.strip_prefix(SEGMENTS_PREFIX)?.to_owned();
        let prefix = format!("{prefix}/");
        Some(Self { key, prefix, newest_unix_s: segment.modified_unix_s, segments: vec![segment.key] })
    }
}

impl SwiftStore {
    /// Returns the objects after `marker`.
    pub(super) async fn page_of(&self, prefix: &str, marker: &str) -> Result<ListPage, StoreError> {
        let after = escaped(marker);
        let query = format!("?format=json&limit={MAX_PAGE_OBJECTS}&prefix={prefix}&marker={after}");
        let answer = self.ask("LIST", prefix, &Method::GET, &query, |request| request).await?;
        let body = self.whole_body("LIST", prefix, answer, MAX_PAGE_BYTES).await?;
        let fail = |detail: String| self.fail(StoreErrorKind::Other, "LIST", prefix, detail);
        let page: Vec<Listed> = match body.is_empty() {
            true => Vec::new(),
            false => {
                serde_json::from_slice(&body).map_err(|error| fail(format!("invalid listing: {error}")))?
            }
        };
        let next = page.last().map(|last| last.name.clone());
        if next.as_ref().is_some_and(|last| last.as_str() <= marker) {
            // Fails instead of looping or returning a partial listing, which deletions depend on.
            return Err(fail("the pages of the listing do not advance".to_owned()));
        }
        let found = page.len();
        let own = page.into_iter().filter(|found| found.name.starts_with(prefix) && check_key(&found.name));
        let objects: Vec<_> = own
            .map(|found| ObjectInfo {
                version: format!("{}-{}-{}", found.hash, found.bytes, found.last_modified),
                modified_unix_s: unix_seconds(&found.last_modified),
                key: found.name,
                size_bytes: found.bytes,
            })
            .collect();
        if objects.len() < found {
            let others = found - objects.len();
            tracing::warn!(
                store = self.description,
                prefix,
                others,
                "listing omits objects with invalid keys"
            );
        }
        Ok(ListPage { objects, next })
    }

    /// Removes orphaned segments below a prefix that were stored before a time; returns their number. One
    /// request for each upload that is old enough.
    pub(super) async fn remove_unused_segments(
        &self,
        prefix: &str,
        before_unix_s: i64,
        dry_run: bool,
    ) -> Result<u64, StoreError> {
        let prefix = format!("{SEGMENTS_PREFIX}{prefix}");
        let mut pages = Pages::new(self, &prefix);
        let mut upload: Option<Upload> = None;
        let mut removed = 0;
        while let Some(page) = pages.next().await? {
            // Swift sorts names, so the segments of an upload are consecutive.
            for segment in page {
                match &mut upload {
                    Some(upload) if segment.key.starts_with(&upload.prefix) => {
                        let both = upload.newest_unix_s.zip(segment.modified_unix_s);
                        upload.newest_unix_s = both.map(|(one, other)| one.max(other));
                        upload.segments.push(segment.key);
                        if upload.segments.len() > MAX_SEGMENTS {
                            let detail = format!("more than {MAX_SEGMENTS} segments of one upload");
                            return Err(self.fail(StoreErrorKind::TooLarge, "LIST", &upload.prefix, detail));
                        }
                    }
                    _ => {
                        removed += self.remove_if_unused(upload.take(), before_unix_s, dry_run).await?;
                        upload = Upload::of(segment);
                    }
                }
            }
        }
        Ok(removed + self.remove_if_unused(upload, before_unix_s, dry_run).await?)
    }

    async fn remove_if_unused(
        &self,
        upload: Option<Upload>,
        before_unix_s: i64,
        dry_run: bool,
    ) -> Result<u64, StoreError> {
        let Some(upload) = upload else { return Ok(0) };
        let is_old = upload.newest_unix_s.is_some_and(|stored| stored < before_unix_s);
        if !is_old || self.uses(&upload.key, &upload.prefix).await? {
            return Ok(0);
        }
        for segment in upload.segments.iter().filter(|_| !dry_run) {
            self.delete_object(segment).await?;
        }
        Ok(upload.segments.len() as u64)
    }

    /// Returns true if an object consists of segments with this prefix.
    async fn uses(&self, key: &str, segments: &str) -> Result<bool, StoreError> {
        #[derive(Deserialize)]
        struct Part {
            name: String,
        }
        let answer =
            match self.ask("GET", key, &Method::GET, "?multipart-manifest=get", |request| request).await {
                Ok(answer) => answer,
                Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            };
        if text_of(&answer, "x-static-large-object").is_none_or(|text| text != "True") {
            return Ok(false);
        }
        let body = self.whole_body("GET", key, answer, MAX_PAGE_BYTES).await?;
        let parts: Vec<Part> = serde_json::from_slice(&body).map_err(|error| {
            let detail = format!("invalid list of segments: {error}");
            self.fail(StoreErrorKind::Other, "GET", key, detail)
        })?;
        let used = format!("/{}/{segments}", self.container);
        Ok(parts.iter().any(|part| part.name.starts_with(&used)))
    }
}
