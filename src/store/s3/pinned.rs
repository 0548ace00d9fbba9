//! Connections to one address, or by one network interface.
//!
//! The name of the server stays what requests are signed for and what its certificate has to show.

use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use std::net::IpAddr;

/// Finds the same address for every name.
#[derive(Clone, Debug)]
struct Pinned(IpAddr);

impl ResolveDns for Pinned {
    fn resolve_dns<'a>(&'a self, _name: &'a str) -> DnsFuture<'a> {
        DnsFuture::ready(Ok(vec![self.0]))
    }
}

/// A client that connects to `address`, if one is given, by `interface`, if one is given.
pub(super) fn client(address: Option<IpAddr>, interface: Option<String>) -> SharedHttpClient {
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut builder = Connector::builder();
        builder.set_connector_settings(settings.cloned());
        builder.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        if let Some(interface) = &interface {
            builder.set_interface(interface);
        }
        let builder = builder.tls_provider(Provider::Rustls(CryptoMode::AwsLc));
        match address {
            Some(address) => builder.build_with_resolver(Pinned(address)),
            None => builder.build(),
        }
    })
}
