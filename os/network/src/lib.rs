//! Links and addresses of the node; networks of workloads
