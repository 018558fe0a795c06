//! What test doubles of stores do with objects that arrive in parts, which they are not about.

/// The part of an [`ObjectStore`] about objects that arrive in parts, which a wrapper hands to its `inner` as it is.
macro_rules! multipart_as_inner {
    () => {
        fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
            self.inner.multipart_start(key)
        }

        fn multipart_put<'a>(
            &'a self,
            key: &'a str,
            upload_id: &'a str,
            part_no: u32,
            body: Bytes,
        ) -> StoreFuture<'a, String> {
            self.inner.multipart_put(key, upload_id, part_no, body)
        }

        fn multipart_complete<'a>(
            &'a self,
            key: &'a str,
            upload_id: &'a str,
            tags: &'a [String],
        ) -> StoreFuture<'a, ()> {
            self.inner.multipart_complete(key, upload_id, tags)
        }

        fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
            self.inner.multipart_abort(key, upload_id)
        }
    };
}
