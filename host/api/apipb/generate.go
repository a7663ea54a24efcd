// Package apipb is the API's messages and their Connect service, generated from
// outguard.proto.
package apipb

//go:generate sh -c "protoc --plugin=protoc-gen-go=$DOLLAR(go tool -n protoc-gen-go) --plugin=protoc-gen-connect-go=$DOLLAR(go tool -n protoc-gen-connect-go) --go_out=. --go_opt=paths=source_relative --connect-go_out=. --connect-go_opt=paths=source_relative,simple outguard.proto"
