// Outguard-engine-tsem judges events by TSEM's deterministic model. outguardd
// starts it.
package main

import (
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/tsem"
)

func main() { engine.Serve(tsem.New(nil)) }
