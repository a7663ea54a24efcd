package api_test

import (
	"bytes"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/apitest"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

func withModel() *apitest.Backend {
	b := newBackend()
	b.Add(api.Model{Engine: "tsem", Model: engine.Model{VM: web, Points: 3, Hours: []engine.Hour{{Start: at, Events: 5, New: 3}}}})
	return b
}

// A file goes in and comes out whole, however many parts it takes.
func TestModelFile(t *testing.T) {
	client, _ := serve(t, withModel(), nil)
	file := bytes.Repeat([]byte("point\xff\x00\n"), 30_000)
	in, err := client.ImportModel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(file); i += 50_000 {
		r := &apipb.ImportModelRequest{Part: file[i:min(i+50_000, len(file))]}
		if i == 0 {
			r.Vm = "web"
		}
		if err := in.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	reply, err := in.CloseAndReceive()
	if err != nil || reply.Model.Vm != "web" || reply.Model.Version != 1 || reply.Model.Hours[0].New != 3 {
		t.Fatalf("%v, error %v", reply, err)
	}
	out, err := client.ExportModel(t.Context(), &apipb.ExportModelRequest{Vm: "web"})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for out.Receive() {
		got = append(got, out.Msg().Part...)
	}
	if err := out.Err(); err != nil || !bytes.Equal(got, file) {
		t.Errorf("%d bytes of %d, error %v", len(got), len(file), err)
	}
	if err := out.Close(); err != nil {
		t.Error(err)
	}
}

func TestImportModelOfNobody(t *testing.T) {
	client, _ := serve(t, withModel(), nil)
	in, err := client.ImportModel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = in.Send(&apipb.ImportModelRequest{Vm: "nobody", Part: []byte("x")})
	if _, err := in.CloseAndReceive(); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("error %v", err)
	}
}

func TestAcceptModel(t *testing.T) {
	client, _ := serve(t, withModel(), nil)
	point := strings.Repeat("0a", 32)
	r, err := client.AcceptModel(t.Context(), &apipb.AcceptModelRequest{Vm: "web", Points: []string{point, point}})
	if err != nil || r.Model.Points != 5 {
		t.Errorf("%v, error %v", r, err)
	}
	for _, bad := range [][]string{nil, {""}, {point[1:]}, {"zz" + point[2:]}, make([]string, 257)} {
		if _, err := client.AcceptModel(t.Context(), &apipb.AcceptModelRequest{Vm: "web", Points: bad}); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%d points: error %v", len(bad), err)
		}
	}
	if _, err := client.AcceptModel(t.Context(), &apipb.AcceptModelRequest{Vm: "db", Points: []string{point}}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("of a VM without a model: %v", err)
	}
}

// Records are the bytes that were recorded, of one VM, from its first one.
func TestRecords(t *testing.T) {
	b := newBackend()
	event := vsockproto.Event{Header: vsockproto.Header{Type: vsockproto.SocketListen, Class: vsockproto.Bulk, Sequence: 1}}
	one, other := batch(t, web, 3, event, event), batch(t, db, 4, event)
	one.Records = append(one.Records, "no record"...)
	b.Add(one, other)
	client, _ := serve(t, b, nil)
	s, err := client.Records(t.Context(), &apipb.RecordsRequest{Vm: "web"})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; s.Receive(); n++ {
		m := s.Msg()
		if m.Index != 3 || m.Count != 2 || !bytes.Equal(m.Records, one.Records) || m.Received != api.FormatTime(one.Received) || len(m.Session) != 16 {
			t.Errorf("%v", m)
		}
	}
	if err := s.Err(); err != nil || n != 1 {
		t.Errorf("%d batches, error %v", n, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	nobody, err := client.Records(t.Context(), &apipb.RecordsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if nobody.Receive() || connect.CodeOf(nobody.Err()) != connect.CodeInvalidArgument {
		t.Errorf("of no VM: %v", nobody.Err())
	}
	_ = nobody.Close()
}

func TestSetModel(t *testing.T) {
	client, _ := serve(t, withModel(), nil)
	value := strings.Repeat("0a", 32)
	r, err := client.SetModel(t.Context(), &apipb.SetModelRequest{Vm: "web", Base: value, Aggregate: value, Pseudonyms: []string{value}})
	if err != nil || r.Model.Aggregate != value {
		t.Errorf("%v, error %v", r, err)
	}
	for _, bad := range []*apipb.SetModelRequest{{Vm: "web"}, {Vm: "web", Base: "0a"}, {Vm: "web", Aggregate: value + "0a"}, {Vm: "web", Pseudonyms: []string{"x"}}, {Base: value}} {
		if _, err := client.SetModel(t.Context(), bad); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%v: error %v", bad, err)
		}
	}
}
