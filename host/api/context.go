package api

import (
	"context"
	"net"
	"net/http"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

type (
	controllerKey struct{}
	callerKey     struct{}
	stopKey       struct{}
)

// withController gives handlers the means to bound a single write.
func withController(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := context.WithValue(r.Context(), controllerKey{}, http.NewResponseController(w))
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func controllerOf(ctx context.Context) *http.ResponseController {
	c, _ := ctx.Value(controllerKey{}).(*http.ResponseController)
	return c
}

// withStop carries the end of the server to streams, which end at once, beside
// the end of the call, which unary calls may outlive by the shutdown period.
func withStop(ctx, stop context.Context) context.Context {
	return context.WithValue(ctx, stopKey{}, stop)
}

// streamContext ends with the call or with the server.
func streamContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if stop, ok := ctx.Value(stopKey{}).(context.Context); ok {
		unhook := context.AfterFunc(stop, cancel)
		return ctx, func() { unhook(); cancel() }
	}
	return ctx, cancel
}

func connContext(ctx context.Context, c net.Conn) context.Context {
	if p, ok := c.(*peerConn); ok {
		return context.WithValue(ctx, callerKey{}, p.caller)
	}
	return ctx
}

func callerOf(ctx context.Context, reason string) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	c.Reason = reason
	return c
}

// peerListener bounds the connections and asks the kernel who connected.
type peerListener struct {
	net.Listener
	tokens chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newPeerListener(l net.Listener, limit int) *peerListener {
	return &peerListener{Listener: l, tokens: make(chan struct{}, limit), closed: make(chan struct{})}
}

func (l *peerListener) Accept() (net.Conn, error) {
	select {
	case l.tokens <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.tokens
		return nil, err
	}
	return &peerConn{Conn: c, caller: peerOf(c), release: func() { <-l.tokens }}, nil
}

func (l *peerListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type peerConn struct {
	net.Conn
	caller  Caller
	once    sync.Once
	release func()
}

func (c *peerConn) Close() error {
	c.once.Do(c.release)
	return c.Conn.Close()
}

// peerOf is who is at the other end, zero where that is no unix socket.
func peerOf(c net.Conn) Caller {
	sc, ok := c.(*net.UnixConn)
	if !ok {
		return Caller{}
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return Caller{}
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}) != nil || err != nil {
		return Caller{}
	}
	return Caller{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}
}
