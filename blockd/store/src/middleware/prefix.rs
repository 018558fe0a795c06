//! A part of a store: everything lies below one prefix, as if that were the whole of it.

use crate::{BlobStore, ListPage, ObjectInfo, PutMode, StoreFuture, check_key};
use bytes::Bytes;
use std::sync::Arc;

/// The longest prefix, in bytes: what lies below it has room for its own keys.
const MAX_PREFIX_BYTES: usize = 512;

/// A text that is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is no prefix: expected up to {MAX_PREFIX_BYTES} letters, digits, '-', '_' and '.' in parts separated by '/' that are not empty and do not begin with a dot, such as demo or hosts/a"
)]
pub struct BadPrefix {
    /// The text as it was given.
    pub given: String,
}

/// A prefix as it is kept, without slashes around it; none if nothing else is in it.
///
/// # Errors
/// Not every store would take keys below it.
pub fn plain_prefix(given: &str) -> Result<Option<String>, BadPrefix> {
    let plain = given.trim_matches('/');
    if plain.is_empty() {
        return Ok(None);
    }
    match check_key(plain) && plain.len() <= MAX_PREFIX_BYTES {
        true => Ok(Some(plain.to_owned())),
        false => Err(BadPrefix { given: given.to_owned() }),
    }
}

/// Part of a store below a prefix.
pub struct PrefixStore {
    inner: Arc<dyn BlobStore>,
    /// Prefix of each key, with its slash.
    before: String,
    description: String,
}

impl PrefixStore {
    /// Of `inner` what lies below `prefix`, which is as [`plain_prefix`] makes it.
    pub fn new(inner: Arc<dyn BlobStore>, prefix: &str) -> Self {
        let description = format!("{}, below {prefix}", inner.describe());
        Self { inner, before: format!("{prefix}/"), description }
    }

    /// The key in the whole store; the store refuses it if what is below the prefix is no key.
    fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.before)
    }
}

impl BlobStore for PrefixStore {
    fn describe(&self) -> &str {
        &self.description
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.inner.put(&self.full_key(key), body, mode).await })
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move { self.inner.get(&self.full_key(key), max_len_bytes).await })
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move { self.inner.get_range(&self.full_key(key), offset_bytes, len_bytes).await })
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(async move { self.inner.delete(&self.full_key(key)).await })
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        Box::pin(async move {
            let listed = self.inner.list_page(&self.full_key(prefix), page).await?;
            let own = |info: ObjectInfo| {
                let key = info.key.strip_prefix(&self.before)?.to_owned();
                Some(ObjectInfo { key, ..info })
            };
            Ok(ListPage { objects: listed.objects.into_iter().filter_map(own).collect(), next: listed.next })
        })
    }

    fn remove_unfinished<'a>(
        &'a self,
        prefix: &'a str,
        before_unix_s: i64,
        dry_run: bool,
    ) -> StoreFuture<'a, u64> {
        Box::pin(
            async move { self.inner.remove_unfinished(&self.full_key(prefix), before_unix_s, dry_run).await },
        )
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        Box::pin(async move { self.inner.multipart_start(&self.full_key(key)).await })
    }

    fn multipart_put<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        part_no: u32,
        body: Bytes,
    ) -> StoreFuture<'a, String> {
        Box::pin(async move { self.inner.multipart_put(&self.full_key(key), upload_id, part_no, body).await })
    }

    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.inner.multipart_complete(&self.full_key(key), upload_id, tags).await })
    }

    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.inner.multipart_abort(&self.full_key(key), upload_id).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LocalStore, StoreErrorKind};

    #[test]
    fn prefixes_are_kept_without_slashes_and_checked() {
        for (given, plain) in [("demo", "demo"), ("/demo/", "demo"), ("a/b.c/d-1_2/", "a/b.c/d-1_2")] {
            assert_eq!(plain_prefix(given).unwrap().as_deref(), Some(plain));
        }
        assert_eq!(plain_prefix("").unwrap(), None);
        assert_eq!(plain_prefix("//").unwrap(), None);
        let long = ["x"; 257].join("/");
        for bad in ["a//b", "a/../b", ".", "a/.b", "a b", "ä", "a\\b", &long] {
            assert!(plain_prefix(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn prefix_store_confines_all_requests() {
        let dir = tempfile::tempdir().unwrap();
        let full_key: Arc<dyn BlobStore> = Arc::new(LocalStore::open(dir.path()).unwrap());
        let part = |prefix| PrefixStore::new(Arc::clone(&full_key), prefix);
        let (one, other) = (part("demo"), part("demo2/x"));
        let put = |store: &'static str| Bytes::from_static(store.as_bytes());
        one.put("a/k", put("one"), PutMode::CreateIfAbsent).await.unwrap();
        other.put("a/k", put("other"), PutMode::CreateIfAbsent).await.unwrap();
        let upload = one.multipart_start("a/big").await.unwrap();
        let tag = one.multipart_put("a/big", &upload, 0, put("parts")).await.unwrap();
        one.multipart_complete("a/big", &upload, &[tag]).await.unwrap();
        let upload = one.multipart_start("a/left").await.unwrap();
        one.multipart_abort("a/left", &upload).await.unwrap();
        let keys = |listed: Vec<ObjectInfo>| listed.into_iter().map(|info| info.key).collect::<Vec<_>>();
        assert_eq!(keys(full_key.list("").await.unwrap()), ["demo/a/big", "demo/a/k", "demo2/x/a/k"]);
        for prefix in ["", "a/"] {
            assert_eq!(keys(one.list(prefix).await.unwrap()), ["a/big", "a/k"]);
        }
        assert_eq!(one.get("a/k", 10).await.unwrap(), "one");
        assert_eq!(other.get_range("a/k", 1, 2).await.unwrap(), "th");
        assert!(one.describe().ends_with(", below demo"), "{}", one.describe());
        assert_eq!(one.get("../demo2/x/a/k", 10).await.unwrap_err().kind, StoreErrorKind::BadKey);
        assert!(one.delete("a/k").await.unwrap() && !one.delete("a/k").await.unwrap());
        assert_eq!(other.get("a/k", 10).await.unwrap(), "other");
    }
}
