//! Clients of a service on this machine, which the tests and the benchmark share.

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig};
use aws_sdk_ec2::config::{Credentials, SharedCredentialsProvider};
use backend_vm::{Bucket, Buckets, VmBackend, VmConfig};

/// A backend that asks there, and does not retry.
pub(crate) fn backend(config: VmConfig, endpoint: &str) -> VmBackend {
    let credentials = Credentials::new("test", "test", None, None, "tests");
    let sdk = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .retry_config(RetryConfig::disabled())
        .build();
    let clients = (aws_sdk_ec2::Client::new(&sdk), aws_sdk_sts::Client::new(&sdk));
    config.build_with(clients.0, clients.1).expect("a good configuration")
}

/// For where it is not tried how fast an account may call.
#[allow(dead_code, reason = "some of those who share this try just that")]
pub(crate) fn unpaced() -> Buckets {
    let bucket = Bucket { size: 10_000, refill: 10_000 };
    Buckets {
        run: bucket,
        start: bucket,
        stop: bucket,
        terminate: bucket,
        start_machines: bucket,
        stop_machines: bucket,
        terminate_machines: bucket,
        describe: bucket,
        tag: bucket,
        change: bucket,
    }
}
