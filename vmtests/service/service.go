// Package service is the web service of the guests as its visitors know it: its
// normal traffic, the same every time.
package service

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// visits are what a visitor does: the request and what the answer holds.
var visits = []struct{ path, want string }{
	{"/", "<h1>Parts</h1>"},
	{"/index.html", "<h1>Parts</h1>"},
	{"/cgi-bin/search.cgi?q=bolt", "bolt M4 0.04\nbolt M6 0.07\n"},
	{"/cgi-bin/search.cgi?q=hinge", "hinge 60mm 2.35\n"},
	{"/cgi-bin/search.cgi?q=anvil", "no such part\n"},
}

// A round of Visit opens Page so often, and Front once more.
const (
	Page  = "/srv/www/index.html"
	Pages = 2
)

// Front asks for the first page.
func Front(ctx context.Context, port int) error {
	_, err := get(ctx, port, "/")
	return err
}

// Wait waits until the service on 127.0.0.1:port answers.
func Wait(ctx context.Context, port int, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := Front(ctx, port)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("web service on port %d: %w", port, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Visit makes the normal traffic, rounds times over, one request after the
// other, and checks every answer.
func Visit(ctx context.Context, port, rounds int) error {
	for range rounds {
		for _, v := range visits {
			body, err := get(ctx, port, v.path)
			if err != nil {
				return fmt.Errorf("visit %s: %w", v.path, err)
			}
			if !strings.Contains(body, v.want) {
				return fmt.Errorf("visit %s: answer %q, want %q", v.path, body, v.want)
			}
		}
	}
	return nil
}

func get(ctx context.Context, port int, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	if err != nil {
		return "", err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", resp.Status)
	}
	return string(body), err
}
