//! inference-pod
