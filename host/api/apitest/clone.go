package apitest

import "google.golang.org/protobuf/proto"

// clone keeps what the server does to an answer from the backend's own.
func clone[M proto.Message](m M) M { return proto.Clone(m).(M) }
