package engine

//go:generate sh -c "protoc --plugin=$(go tool -n protoc-gen-go) --plugin=$(go tool -n protoc-gen-go-grpc) --go_out=enginepb --go_opt=paths=source_relative --go-grpc_out=enginepb --go-grpc_opt=paths=source_relative engine.proto"
