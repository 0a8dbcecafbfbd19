//! From what went wrong to a gRPC status.

use axum::http::StatusCode;
use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};

use crate::http::error::{ApiError, millis};

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let code = code_of(error.status());
        let mut metadata = MetadataMap::new();
        match error.retry_after() {
            Some(wait) => {
                let wait = MetadataValue::from(millis(wait));
                // The first is gRPC's own, which clients obey; the second is the one that HTTP has too.
                metadata.insert("grpc-retry-pushback-ms", wait.clone());
                metadata.insert("retry-after-ms", wait);
            }
            // The same code as for a full queue, but trying again would be of no use.
            None if code == Code::ResourceExhausted => {
                metadata.insert("grpc-retry-pushback-ms", MetadataValue::from(-1));
            }
            None => {}
        }
        if error.is_compressed() {
            metadata.insert("grpc-accept-encoding", MetadataValue::from_static("identity"));
        }
        Self::with_metadata(code, error.message(), metadata)
    }
}

fn code_of(status: StatusCode) -> Code {
    match status {
        StatusCode::NOT_FOUND => Code::NotFound,
        // What gRPC itself says of a message that is too large, and of a queue that is full.
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        StatusCode::GATEWAY_TIMEOUT => Code::DeadlineExceeded,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Code::Unimplemented,
        status if status.is_client_error() => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_in_both_words_and_none_where_it_would_not_help() {
        let busy = Status::from(ApiError::not_ready("loading"));
        assert_eq!((busy.code(), busy.message()), (Code::Unavailable, "loading"));
        assert_eq!(busy.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");
        assert_eq!(busy.metadata().get("retry-after-ms").unwrap(), "1000");
        let large = Status::from(ApiError::too_large("large"));
        assert_eq!(large.code(), Code::ResourceExhausted);
        assert_eq!(large.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
        assert!(Status::from(ApiError::bad_input("x")).metadata().is_empty());
        let compressed = Status::from(ApiError::compressed("x"));
        assert_eq!(compressed.code(), Code::Unimplemented);
        assert_eq!(compressed.metadata().get("grpc-accept-encoding").unwrap(), "identity");
    }
}
