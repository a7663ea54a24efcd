package listen

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

var alpha, beta = uuid.UUID{1}, uuid.UUID{2}

// echo answers with whose connection it took it for.
func echo(ctx context.Context, c net.Conn, vm uuid.UUID, transport string) {
	io.WriteString(c, transport+" "+vm.String())
	c.Close()
}

func quiet(refused func(Refusal)) Options {
	return Options{Refused: refused, Log: slog.New(slog.DiscardHandler)}
}

func ask(t *testing.T, path string) string {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTheSocketSaysWhoSpeaks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vsock")
	h := NewHybrid(dir, echo, &HybridOptions{Options: quiet(nil), Group: os.Getgid()})
	if err := h.Add(alpha, "alpha"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	if err := h.Add(beta, "beta"); err != nil { // while it runs
		t.Fatal(err)
	}
	for name, vm := range map[string]uuid.UUID{"alpha": alpha, "beta": beta} {
		if got := ask(t, filepath.Join(dir, name+".sock_6820")); got != "hybrid "+vm.String() {
			t.Errorf("%s: %q", name, got)
		}
		if s, err := os.Stat(h.Path(name)); err != nil || s.Mode().Perm() != 0o660 {
			t.Errorf("%s: %v, %v", name, s.Mode(), err)
		}
	}
	if err := h.Add(alpha, "renamed"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(h.Path("alpha")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old name: %v", err)
	}
	h.Remove(beta)
	if _, err := net.Dial("unix", h.Path("beta")); err == nil {
		t.Error("a removed socket takes connections")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := h.Add(beta, "beta"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

func TestSocketsThatAreThere(t *testing.T) {
	dir := t.TempDir()
	h := NewHybrid(dir, echo, &HybridOptions{Options: quiet(nil)})
	if err := h.Add(alpha, "alpha"); err != nil {
		t.Fatal(err)
	}
	other := NewHybrid(dir, echo, nil)
	if err := other.Add(alpha, "alpha"); !errors.Is(err, ErrInUse) {
		t.Errorf("in use: %v", err)
	}
	if err := h.Add(beta, "alpha"); !errors.Is(err, os.ErrExist) {
		t.Errorf("of another domain: %v", err)
	}
	h.at[alpha].ln.Close() // as if the monitor had been killed
	if err := other.Add(alpha, "alpha"); err != nil {
		t.Errorf("left over: %v", err)
	}
	for _, name := range []string{"", "../alpha", "a/b"} {
		if err := other.Add(beta, name); !errors.Is(err, os.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := other.Add(beta, strings.Repeat("x", 120)); err == nil {
		t.Error("a path that no sockaddr can hold")
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

// one is a listener that accepts what it is given.
type one struct {
	net.Listener
	conns chan net.Conn
}

func (o one) Accept() (net.Conn, error) {
	if c, ok := <-o.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func TestTheUnprovenAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refused []Refusal
		inside := make(chan net.Conn, 100)
		o := quiet(func(r Refusal) { refused = append(refused, r) })
		d := newDoor(func(_ context.Context, c net.Conn, _ uuid.UUID, _ string) {
			inside <- c
			c.Read(make([]byte, 1))
		}, &o)
		l := one{conns: make(chan net.Conn)}
		var ends []net.Conn
		connect := func() {
			a, b := net.Pipe()
			ends = append(ends, a)
			l.conns <- b
			synctest.Wait()
		}
		unproven := func() int {
			synctest.Wait()
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.total
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			var wg sync.WaitGroup
			_ = d.accept(t.Context(), &wg, l, Hybrid, func(net.Conn) caller { return caller{vm: alpha, peer: "alpha"} })
			wg.Wait()
		}()
		for range 9 {
			connect()
		}
		// The ninth is in, and the first has gone.
		if len(inside) != 9 || len(refused) != 1 || refused[0].Rule != RuleCrowd || refused[0].VM != alpha || unproven() != 8 {
			t.Fatalf("%d inside, %d unproven, refused %+v", len(inside), unproven(), refused)
		}
		if _, err := ends[0].Read(make([]byte, 1)); err == nil {
			t.Fatal("the first is still there")
		}
		for range 2 {
			(<-inside).(interface{ Proven() }).Proven() // the first, in vain, and the second
		}
		connect()
		if len(refused) != 1 || unproven() != 8 {
			t.Fatalf("after one has proven itself: %d unproven, refused %+v", unproven(), refused)
		}
		time.Sleep(16 * time.Second) // those that proved nothing are thrown out
		synctest.Wait()
		if unproven() != 0 {
			t.Fatalf("%d unproven after a while", unproven())
		}
		d.mu.Lock()
		d.o.Total = 3
		d.mu.Unlock()
		for range 5 {
			connect()
		}
		if unproven() != 3 || len(refused) != 2 {
			t.Fatalf("%d unproven of all domains, refused %+v", unproven(), refused)
		}
		ends[1].SetDeadline(time.Now().Add(time.Second))
		if _, err := ends[1].Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("the one that was proven: %v", err)
		}
		for _, c := range ends {
			c.Close()
		}
		close(l.conns)
		<-done
		synctest.Wait()
		if unproven() != 0 || len(d.waiting) != 0 {
			t.Fatalf("%d places taken", unproven())
		}
	})
}

// A listener that ends serves nobody any more: agents that come back at once, and
// find those places taken that are not given free yet, are no crowd.
func TestWhoComesAtTheEndIsNoCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		served := 0
		o := quiet(func(r Refusal) { t.Errorf("refused %+v", r) })
		o.Total = 1
		d := newDoor(func(_ context.Context, c net.Conn, _ uuid.UUID, _ string) {
			served++
			c.Read(make([]byte, 1))
		}, &o)
		l := one{conns: make(chan net.Conn)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			var wg sync.WaitGroup
			_ = d.accept(ctx, &wg, l, Hybrid, func(net.Conn) caller { return caller{vm: alpha, peer: "alpha"} })
			wg.Wait()
		}()
		first, a := net.Pipe()
		l.conns <- a
		synctest.Wait()
		cancel()
		second, b := net.Pipe()
		l.conns <- b
		if _, err := second.Read(make([]byte, 1)); err == nil || served != 1 {
			t.Errorf("%d served, read: %v", served, err)
		}
		first.Close()
		<-done
	})
}

// Who is asked about holds a place as well: strangers are bounded, one peer
// takes no more than its share, and what is refused is not asked about.
func TestThoseWhoAreAskedAboutAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var refused []Refusal
		asked, served := 0, 0
		answer := make(chan struct{})
		o := quiet(func(r Refusal) { mu.Lock(); refused = append(refused, r); mu.Unlock() })
		o.Total, o.PerDomain = 5, 3
		d := newDoor(func(_ context.Context, c net.Conn, vm uuid.UUID, _ string) {
			if vm != alpha {
				t.Errorf("served %s", vm)
			}
			mu.Lock()
			served++
			mu.Unlock()
			c.Read(make([]byte, 1))
		}, &o)
		enter := func(peer string, vm uuid.UUID, err error) {
			_, c := net.Pipe()
			go d.enter(t.Context(), c, Vsock, caller{peer: peer, ask: func() (uuid.UUID, error) {
				mu.Lock()
				asked++
				mu.Unlock()
				<-answer
				return vm, err
			}})
			synctest.Wait()
		}
		look := func() { mu.Lock(); d.mu.Lock() }
		done := func() { d.mu.Unlock(); mu.Unlock() }
		for range 10 {
			enter("CID 9", uuid.Nil, ErrStranger)
		}
		look()
		if asked != 3 || d.total != 3 || len(refused) != 1 || refused[0].Rule != RuleCrowd {
			t.Fatalf("%d asked, %d places, refused %+v", asked, d.total, refused)
		}
		done()
		for range 3 {
			enter("CID 3", alpha, nil)
		}
		look()
		if asked != 5 || d.total != 5 || len(refused) != 2 {
			t.Fatalf("of all: %d asked, %d places, refused %+v", asked, d.total, refused)
		}
		done()
		close(answer)
		synctest.Wait()
		look()
		if served != 2 || d.total != 2 || len(d.waiting[alpha]) != 2 || len(d.asking) != 0 || refused[2].Rule != RuleStranger {
			t.Fatalf("answered: %d served, %d places, %d asking, refused %+v", served, d.total, len(d.asking), refused)
		}
		done()
		time.Sleep(16 * time.Second) // nobody proved anything
		synctest.Wait()
		look()
		if d.total != 0 || len(d.waiting) != 0 {
			t.Fatalf("%d places taken", d.total)
		}
		done()
	})
}

type cids map[uint32]uuid.UUID

func (c cids) DomainByCID(_ context.Context, cid uint32) (uuid.UUID, error) {
	if vm, ok := c[cid]; ok {
		return vm, nil
	}
	return uuid.Nil, ErrStranger
}

// TestVsockLoopback listens at AF_VSOCK and connects to itself, once as a known
// domain and once as a stranger. It needs the kernel's vsock_loopback.
func TestVsockLoopback(t *testing.T) {
	dial := vsockLoopback(t)
	refused := make(chan Refusal, 1)
	o := quiet(func(r Refusal) { refused <- r })
	for name, known := range map[string]cids{"known": {1: alpha}, "stranger": {}} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- NewVsock(vsockproto.Port, known, echo, &o).Run(ctx) }()
			c := dial(t, vsockproto.Port)
			b, _ := io.ReadAll(c)
			c.Close()
			if len(known) > 0 && string(b) != "vsock "+alpha.String() {
				t.Errorf("got %q", b)
			}
			if len(known) == 0 {
				if r := <-refused; r.Rule != RuleStranger || r.Peer != "CID 1" || len(b) != 0 {
					t.Errorf("refused %+v, got %q", r, b)
				}
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestVsockCarriesASession speaks the protocol over AF_VSOCK: deadlines, large
// frames and an end in order work there as they do over unix sockets.
func TestVsockCarriesASession(t *testing.T) {
	dial := vsockLoopback(t)
	const events = 3000
	got := 0
	h := prototest.NewHost(&prototest.HostOptions{OnEvent: func(*vsockproto.Event) { got++ }})
	served := make(chan error, 1)
	serve := func(_ context.Context, c net.Conn, vm uuid.UUID, _ string) {
		if vm != alpha {
			t.Errorf("of %s", vm)
		}
		served <- h.Serve(c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	o := quiet(nil)
	go func() { done <- NewVsock(vsockproto.Port, cids{1: alpha}, serve, &o).Run(ctx) }()
	a := prototest.NewAgent(nil)
	go a.Run(ctx, dial(t, vsockproto.Port))
	var batch []*vsockproto.Event
	for range events {
		batch = append(batch, prototest.Sample(vsockproto.FileOpen))
	}
	if err := a.Send(ctx, batch...); err != nil {
		t.Fatal(err)
	}
	if err := a.Bye(ctx, "done"); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil || got != events {
		t.Errorf("%d of %d events: %v", got, events, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// However many connections of one domain come at once, its places are all that
// they take, and another domain's agent gets in.
func TestACrowdTakesOnlyItsDomainsPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const crowd = 1000
		var mu sync.Mutex
		var refused []Refusal
		served := map[uuid.UUID]int{}
		o := quiet(func(r Refusal) { mu.Lock(); refused = append(refused, r); mu.Unlock() })
		o.Total, o.PerDomain = 16, 8
		var d *door
		d = newDoor(func(_ context.Context, c net.Conn, vm uuid.UUID, _ string) {
			mu.Lock()
			served[vm]++
			mu.Unlock()
			d.mu.Lock()
			if n := len(d.waiting[alpha]); n > o.PerDomain {
				t.Errorf("%d places of one domain", n)
			}
			d.mu.Unlock()
			c.Read(make([]byte, 1))
		}, &o)
		enter := func(vm uuid.UUID) {
			_, c := net.Pipe()
			go d.enter(t.Context(), c, Hybrid, caller{vm: vm, peer: vm.String()})
		}
		for range crowd {
			enter(alpha)
		}
		enter(beta)
		synctest.Wait()
		mu.Lock()
		if served[alpha] != crowd || served[beta] != 1 {
			t.Errorf("served %v", served)
		}
		if len(refused) != 1 || refused[0].Rule != RuleCrowd || refused[0].VM != alpha {
			t.Errorf("refused %+v", refused)
		}
		mu.Unlock()
		time.Sleep(16 * time.Second)
		synctest.Wait()
	})
}

// TestUnread: what waits in the kernel is told.
func TestUnread(t *testing.T) {
	a, b, err := prototest.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	g := &guest{Conn: b}
	if n := g.Unread(); n != 0 {
		t.Errorf("%d bytes before any", n)
	}
	if _, err := a.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if n := g.Unread(); n != 5 {
		t.Errorf("%d bytes of 5", n)
	}
	in, out := net.Pipe()
	defer in.Close()
	defer out.Close()
	if n := (&guest{Conn: in}).Unread(); n != 0 {
		t.Errorf("%d bytes of a pipe", n)
	}
}
