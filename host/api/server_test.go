package api_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/apipb/apipbconnect"
	"github.com/outguard/outguard/host/api/apitest"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	web = uuid.MustParse("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
	db  = uuid.MustParse("7f9619ff-8b86-4d01-b42d-00cf4fc964ff")
	at  = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
)

func newBackend() *apitest.Backend {
	b := apitest.New()
	b.Add(&apipb.VM{Name: "web", Uuid: web.String(), State: "running", Enrolled: true},
		&apipb.VM{Name: "db", Uuid: db.String(), State: "paused"})
	return b
}

// serve answers on a unix socket until the test ends.
func serve(t *testing.T, b api.Backend, opts *api.Options) (client apipbconnect.OutguardClient, socket string) {
	t.Helper()
	client, socket, stop := start(t, b, opts)
	t.Cleanup(stop)
	return client, socket
}

func serveFor(b *testing.B, back api.Backend) (client apipbconnect.OutguardClient, stop func()) {
	client, _, stop = start(b, back, nil)
	return client, stop
}

func start(t testing.TB, b api.Backend, opts *api.Options) (client apipbconnect.OutguardClient, socket string, stop func()) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "api.sock")
	l, err := api.Listen(socket, -1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.New(b, opts).Serve(ctx, l) }()
	return api.NewClient(socket), socket, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
}

func batch(t *testing.T, vm uuid.UUID, index uint64, events ...vsockproto.Event) *engine.Batch {
	t.Helper()
	b := &engine.Batch{VM: vm, Index: index, Received: at.Add(time.Duration(index) * time.Second), Count: len(events)}
	var err error
	for i := range events {
		e := &events[i]
		e.Class, e.Sequence = vsockproto.Critical, index*100+uint64(i)+1
		if b.Records, err = e.Append(b.Records); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func exec(pid uint32, path string, argv ...string) vsockproto.Event {
	e := vsockproto.Event{Header: vsockproto.Header{Type: vsockproto.BprmCommittedCreds}}
	e.PID, e.TGID = pid, pid
	e.Path.Data = []byte(path)
	for _, a := range argv {
		e.Argv.Data = append(append(e.Argv.Data, a...), 0)
	}
	return e
}

func open(pid uint32, path string) vsockproto.Event {
	e := vsockproto.Event{Header: vsockproto.Header{Type: vsockproto.FileOpen}}
	e.PID, e.TGID, e.Path.Data = pid, pid, []byte(path)
	return e
}

func paths(t *testing.T, c apipbconnect.OutguardClient, r *apipb.EventsRequest) string {
	t.Helper()
	s, err := c.Events(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var out []string
	for s.Receive() {
		for _, e := range s.Msg().Events {
			out = append(out, e.Vm+":"+e.GetFile().GetPath())
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func TestEventsFilters(t *testing.T) {
	b := newBackend()
	gone := uuid.UUID{15: 77}
	b.Add(batch(t, web, 1, exec(7, "/bin/sh"), open(7, "/etc/passwd"), open(8, "/tmp/\x1b]0;x")),
		batch(t, db, 2, open(7, "/etc/shadow")), batch(t, gone, 3, open(9, "/left")))
	c, _ := serve(t, b, nil)
	for _, tc := range []struct {
		name string
		r    *apipb.EventsRequest
		want string
	}{
		{"all", &apipb.EventsRequest{}, `web:/bin/sh web:/etc/passwd web:/tmp/\x1b]0;x db:/etc/shadow :/left`},
		{"a vm that is gone", &apipb.EventsRequest{Vm: gone.String()}, `:/left`},
		{"vm by name", &apipb.EventsRequest{Vm: "db"}, `db:/etc/shadow`},
		{"vm by uuid", &apipb.EventsRequest{Vm: db.String()}, `db:/etc/shadow`},
		{"pid", &apipb.EventsRequest{Pid: 8}, `web:/tmp/\x1b]0;x`},
		{"path", &apipb.EventsRequest{Path: "/etc/passwd"}, `web:/etc/passwd`},
		{"pattern", &apipb.EventsRequest{Path: "/etc/*"}, `web:/etc/passwd db:/etc/shadow`},
		{"type", &apipb.EventsRequest{Types: []string{"bprm_committed_creds"}}, `web:/bin/sh`},
		{"since", &apipb.EventsRequest{Since: "2026-01-02T03:04:07Z"}, `db:/etc/shadow :/left`},
		{"limit", &apipb.EventsRequest{Limit: 2}, `web:/bin/sh web:/etc/passwd`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := paths(t, c, tc.r); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestEventsThatDoNotDecodeAreShown(t *testing.T) {
	b := newBackend()
	bad := batch(t, web, 1, open(1, "/a"))
	bad.Records = append(bad.Records, 0xff, 0xff)
	b.Add(bad, batch(t, web, 2, open(1, "/b")))
	c, _ := serve(t, b, nil)
	s, err := c.Events(t.Context(), &apipb.EventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var types []string
	for s.Receive() {
		for _, e := range s.Msg().Events {
			types = append(types, e.Type)
		}
	}
	if got := strings.Join(types, " "); s.Err() != nil || got != "file_open undecodable file_open" {
		t.Errorf("%s, %v", got, s.Err())
	}
}

func TestFollowGoesOnWithWhatArrives(t *testing.T) {
	b := newBackend()
	b.Add(batch(t, web, 1, open(1, "/old")))
	c, _ := serve(t, b, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := c.Events(ctx, &apipb.EventsRequest{Follow: true, Since: "2026-01-01T00:00:00Z"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if !s.Receive() || s.Msg().Events[0].File.Path != "/old" {
		t.Fatalf("%v, %v", s.Msg(), s.Err())
	}
	b.Add(batch(t, web, 2, open(1, "/new")))
	if !s.Receive() || s.Msg().Events[0].File.Path != "/new" {
		t.Fatalf("%v, %v", s.Msg(), s.Err())
	}
}

func TestFindingsBySeverity(t *testing.T) {
	b := newBackend()
	b.Add(&engine.Finding{ID: "1", VM: web, At: at, Severity: engine.Low, Rule: "a"},
		&engine.Finding{ID: "2", VM: web, At: at, Severity: engine.High, Rule: "b", Comm: "x\xff\x1b", Reason: "says \u202e",
			Ref: &engine.Ref{Class: 1, Index: 9}, Detail: map[string]string{"k\n": "v\x00"}})
	c, _ := serve(t, b, nil)
	s, err := c.Findings(t.Context(), &apipb.FindingsRequest{MinSeverity: "medium"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if !s.Receive() {
		t.Fatal(s.Err())
	}
	f := s.Msg().Finding
	if f.Id != "2" || f.Vm != "web" || f.Severity != "high" || f.Comm != `x\xff\x1b` || f.Reason != `says \u202e` ||
		f.Ref.Class != "critical" || f.Detail[`k\n`] != `v\x00` {
		t.Errorf("%v", f)
	}
	if s.Receive() {
		t.Errorf("also %v", s.Msg())
	}
}

func TestOrders(t *testing.T) {
	var log bytes.Buffer
	b := newBackend()
	c, _ := serve(t, b, &api.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	p, err := c.Pause(t.Context(), &apipb.PauseRequest{Vm: "web", Reason: "looks odd"})
	if err != nil {
		t.Fatal(err)
	}
	if o := p.Order; o.State != "done" || o.Vm != "web" || o.Step != "pause" || o.Reason != "looks odd" {
		t.Errorf("%v", o)
	}
	_, err = c.Pause(t.Context(), &apipb.PauseRequest{Vm: "web"})
	if connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "outguard vms") {
		t.Errorf("second pause: %v", err)
	}
	all, err := c.ListOrders(t.Context(), &apipb.ListOrdersRequest{})
	if err != nil || len(all.Orders) != 2 || all.Orders[1].State != "failed" {
		t.Errorf("%v, %v", all, err)
	}
	if !strings.Contains(log.String(), "step=pause") || !strings.Contains(log.String(), "reason=\"looks odd\"") ||
		strings.Contains(log.String(), "pid=0") {
		t.Errorf("log: %s", log.String())
	}
}

// A journal of many orders is answered by its newest, and the answer says that
// there are more; one is found by its id however old it is.
func TestOrdersAreLimited(t *testing.T) {
	b := newBackend()
	for i := range 90_000 {
		b.Add(&apipb.Order{Id: fmt.Sprint("old-", i), Step: "pause", Reason: strings.Repeat("x", 400), Decided: api.FormatTime(time.Unix(int64(i), 0))})
	}
	c, _ := serve(t, b, nil)
	for _, tt := range []struct {
		r     *apipb.ListOrdersRequest
		n     int
		first string
		more  bool
	}{
		{&apipb.ListOrdersRequest{}, 1000, "old-89000", true},
		{&apipb.ListOrdersRequest{Limit: 3}, 3, "old-89997", true},
		{&apipb.ListOrdersRequest{Limit: 1 << 63}, 5000, "old-85000", true},
		{&apipb.ListOrdersRequest{Since: api.FormatTime(time.Unix(89_999, 0)), Limit: 1}, 1, "old-89999", false},
		{&apipb.ListOrdersRequest{Id: "old-7"}, 1, "old-7", false},
	} {
		out, err := c.ListOrders(t.Context(), tt.r)
		if err != nil || len(out.Orders) != tt.n || out.Orders[0].Id != tt.first || out.More != tt.more {
			t.Errorf("%v: %d orders, more %v, %v", tt.r, len(out.GetOrders()), out.GetMore(), err)
		}
	}
}

func TestCaptureTellsItsProgress(t *testing.T) {
	c, _ := serve(t, newBackend(), nil)
	s, err := c.Capture(t.Context(), &apipb.CaptureRequest{Vm: "web"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	progress := 0
	for s.Receive() {
		if s.Msg().Progress != nil {
			progress++
		} else if o := s.Msg().Order; o.State != "done" || o.Bundle == "" || progress != 2 {
			t.Errorf("after %d steps of progress: %v", progress, o)
		}
	}
	if s.Err() != nil {
		t.Error(s.Err())
	}
}

func TestRotateKey(t *testing.T) {
	c, _ := serve(t, newBackend(), nil)
	for n := uint64(1); n <= 2; n++ {
		if r, err := c.RotateKey(t.Context(), &apipb.RotateKeyRequest{Reason: "case"}); err != nil || r.Number != n || r.OldKey == r.NewKey {
			t.Errorf("%v, %v", r, err)
		}
	}
}

func TestErrorsNameTheNextThing(t *testing.T) {
	b := newBackend()
	b.State = func() (*apipb.StatusResponse, error) {
		err := api.Error(connect.CodeFailedPrecondition, "start it", errors.New("no\x1b engine"))
		return nil, errors.Join(fmt.Errorf("status: %w", err), os.ErrClosed)
	}
	c, _ := serve(t, b, &api.Options{MaxRequest: 1000})
	for _, tc := range []struct {
		name string
		call func(context.Context) error
		code connect.Code
		text string
	}{
		{"unknown vm", func(ctx context.Context) error {
			_, err := c.Pause(ctx, &apipb.PauseRequest{Vm: "nobody"})
			return err
		}, connect.CodeNotFound, "outguard enroll"},
		{"no vm", func(ctx context.Context) error {
			_, err := c.Pause(ctx, &apipb.PauseRequest{})
			return err
		}, connect.CodeInvalidArgument, "outguard vms"},
		{"since", func(ctx context.Context) error {
			_, err := c.ListOrders(ctx, &apipb.ListOrdersRequest{Since: "yesterday"})
			return err
		}, connect.CodeInvalidArgument, "2006-01-02T15:04:05Z"},
		{"a backend's error", func(ctx context.Context) error {
			_, err := c.Status(ctx, &apipb.StatusRequest{})
			return err
		}, connect.CodeFailedPrecondition, "failed_precondition: status: no\\x1b engine; start it\\nfile already closed"},
		{"a large request", func(ctx context.Context) error {
			_, err := c.Pause(ctx, &apipb.PauseRequest{Vm: strings.Repeat("x", 2000)})
			return err
		}, connect.CodeResourceExhausted, ""},
		{"an unknown type", func(ctx context.Context) error {
			s, err := c.Events(ctx, &apipb.EventsRequest{Types: []string{"nope"}})
			if err != nil {
				return err
			}
			s.Receive()
			return s.Err()
		}, connect.CodeInvalidArgument, "file_open"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.call(t.Context())
			if connect.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestStreamsAreBounded(t *testing.T) {
	b := newBackend()
	b.Add(batch(t, web, 1, open(1, "/a")))
	c, _ := serve(t, b, &api.Options{MaxStreams: 1})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, err := c.Events(ctx, &apipb.EventsRequest{Follow: true, Since: "2026-01-01T00:00:00Z"})
	if err != nil || !first.Receive() {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	second, err := c.Events(t.Context(), &apipb.EventsRequest{})
	if err == nil {
		second.Receive()
		err = second.Err()
		_ = second.Close()
	}
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("second stream: %v", err)
	}
}

// A reader that takes nothing loses its stream; the backend's goroutine is free.
func TestAReaderThatTakesNothingLosesItsStream(t *testing.T) {
	b := newBackend()
	for i := range 2000 {
		b.Add(batch(t, web, uint64(i+1), open(1, "/"+strings.Repeat("x", 4000))))
	}
	ended := make(chan error, 1)
	_, socket := serve(t, watched{b, ended}, &api.Options{WriteTimeout: 50 * time.Millisecond})
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	body := "\x00\x00\x00\x00\x02{}"
	_, err = io.WriteString(conn, "POST "+apipbconnect.OutguardEventsProcedure+" HTTP/1.1\r\nHost: x\r\n"+
		"Content-Type: application/connect+json\r\nContent-Length: 7\r\n\r\n"+body)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("all was sent to a reader that read nothing")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the stream still waits for its reader")
	}
}

// watched tells how Batches ended.
type watched struct {
	*apitest.Backend
	ended chan error
}

func (w watched) Batches(ctx context.Context, q api.Query, yield func(*engine.Batch) error) error {
	err := w.Backend.Batches(ctx, q, yield)
	w.ended <- err
	return err
}

func TestStopEndsStreamsAndRemovesTheSocket(t *testing.T) {
	b := newBackend()
	b.Add(batch(t, web, 1, open(1, "/a")))
	socket := filepath.Join(t.TempDir(), "api.sock")
	l, err := api.Listen(socket, -1)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != api.SocketMode {
		t.Errorf("socket %v, %v", fi, err)
	}
	if _, err := api.Listen(socket, -1); err == nil || !strings.Contains(err.Error(), "another monitor") {
		t.Errorf("a second listener: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.New(b, nil).Serve(ctx, l) }()
	s, err := api.NewClient(socket).Events(t.Context(), &apipb.EventsRequest{Follow: true, Since: "2026-01-01T00:00:00Z"})
	if err != nil || !s.Receive() {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	cancel()
	if s.Receive() || connect.CodeOf(s.Err()) != connect.CodeUnavailable {
		t.Errorf("stream: %v", s.Err())
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("socket after the end: %v", err)
	}
}

func TestListenReplacesADeadSocketOnly(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	again, err := api.Listen(dead, -1)
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Listen(file, -1); err == nil {
		t.Error("a file was replaced")
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".api-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestJSONOverHTTPAndMetrics(t *testing.T) {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "outguard_up 1\n") })
	_, socket := serve(t, newBackend(), &api.Options{Metrics: metrics})
	h := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	get := func(r *http.Response, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Body.Close() }()
		b, _ := io.ReadAll(r.Body)
		return string(b)
	}
	got := get(h.Post("http://x"+apipbconnect.OutguardListVMsProcedure, "application/json", strings.NewReader(`{"vm":"db"}`)))
	if !strings.HasPrefix(got, `{"vms":[{"name":"db","uuid":"7f9619ff-8b86-4d01-b42d-00cf4fc964ff","state":"paused","enrolled":false,`) {
		t.Errorf("%s", got)
	}
	if got := get(h.Get("http://x/metrics")); got != "outguard_up 1\n" {
		t.Errorf("%s", got)
	}
}

func TestGRPC(t *testing.T) {
	_, socket := serve(t, newBackend(), nil)
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &p, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer tr.CloseIdleConnections()
	c := apipbconnect.NewOutguardClient(&http.Client{Transport: tr}, "http://x", connect.WithGRPC())
	r, err := c.ListVMs(t.Context(), &apipb.ListVMsRequest{})
	if err != nil || len(r.Vms) != 2 || r.Vms[0].Name != "db" {
		t.Errorf("%v, %v", r, err)
	}
}

// lacking is a record a part of which was given up.
type lacking struct{ *apitest.Backend }

func (l lacking) Batches(ctx context.Context, q api.Query, yield func(*engine.Batch) error) error {
	err := l.Backend.Batches(ctx, q, yield)
	if q.GivenUp != nil {
		q.GivenUp(web, 5)
		q.GivenUp(db, 2)
	}
	return err
}

// TestEventsSayWhatIsGivenUp: once, at the end.
func TestEventsSayWhatIsGivenUp(t *testing.T) {
	b := apitest.New()
	b.Add(batch(t, web, 1, open(7, "/etc/passwd")))
	c, _ := serve(t, lacking{b}, nil)
	s, err := c.Events(t.Context(), &apipb.EventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []uint64
	for s.Receive() {
		got = append(got, uint64(len(s.Msg().Events)), s.Msg().GivenUp)
	}
	if err := s.Err(); err != nil || !slices.Equal(got, []uint64{1, 0, 0, 7}) {
		t.Errorf("%v, %v", got, err)
	}
}
