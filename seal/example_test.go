package seal_test

import (
	"context"
	"fmt"

	"filippo.io/age"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/seal"
)

// A host that only takes backups has the public key alone, and can't read what it has sealed.
func ExampleKeys() {
	ctx := context.Background()
	identity, err := age.GenerateX25519Identity() // as age-keygen does, on the machine of who restores
	if err != nil {
		panic(err)
	}
	public := identity.Recipient().String()

	keys := seal.New()
	err = keys.AddRecipient(public)
	if err != nil {
		panic(err)
	}
	wrapped, err := keys.WrapKey(ctx, kvmbackup.NewDataKey())
	if err != nil {
		panic(err)
	}
	_, err = keys.UnwrapKey(ctx, wrapped)
	fmt.Println(kvmbackup.Code(err))

	reader := seal.New()
	if err := reader.AddIdentity(identity.String()); err != nil {
		panic(err)
	}
	_, err = reader.UnwrapKey(ctx, wrapped)
	fmt.Println(err)
	// Output:
	// no-key
	// <nil>
}
