//! Stores of a test that let requests through to another one, or not.

/// Has `$gate` pass each request on to its `inner`, by its `pass`, which says what becomes of it.
macro_rules! passes_on {
    ($gate:ty, |$this:ident| $url:expr) => {
        const _: () = {
            use bytes::Bytes;
            use objblk::store::{GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreResult};

            #[async_trait::async_trait]
            impl Store for $gate {
                fn url(&self) -> String {
                    let $this = self;
                    $url.into()
                }

                async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
                    self.pass(Op::Get, self.inner.get(key, range)).await
                }

                async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
                    self.pass(Op::Put, self.inner.put_if_absent(key, body)).await
                }

                async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
                    self.pass(Op::Put, self.inner.put(key, body)).await
                }

                async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
                    self.pass(Op::Delete, self.inner.delete(keys)).await
                }

                async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
                    self.pass(Op::Head, self.inner.head(key)).await
                }

                async fn list(
                    &self,
                    prefix: &str,
                    after: Option<&Key>,
                    limit: usize,
                ) -> StoreResult<ListPage> {
                    self.pass(Op::List, self.inner.list(prefix, after, limit)).await
                }
            }
        };
    };
}

pub(crate) use passes_on;
