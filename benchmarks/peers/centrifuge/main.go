// A server on the centrifuge library with its Redis broker, history optional, JSON protocol.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/centrifugal/centrifuge"
)

const (
	historySize     = 100
	historyLifetime = time.Hour
)

func main() {
	history := os.Getenv("HISTORY") == "1"
	node, err := centrifuge.New(centrifuge.Config{LogLevel: centrifuge.LogLevelError, LogHandler: show})
	if err != nil {
		log.Fatal(err)
	}
	shard, err := centrifuge.NewRedisShard(node, centrifuge.RedisShardConfig{
		Address: "127.0.0.1:" + os.Getenv("REDIS_PORT"),
	})
	if err != nil {
		log.Fatal(err)
	}
	broker, err := centrifuge.NewRedisBroker(node, centrifuge.RedisBrokerConfig{
		Prefix: "bench",
		Shards: []*centrifuge.RedisShard{shard},
	})
	if err != nil {
		log.Fatal(err)
	}
	node.SetBroker(broker)

	node.OnConnecting(func(context.Context, centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		return centrifuge.ConnectReply{Credentials: &centrifuge.Credentials{UserID: "guest"}}, nil
	})
	node.OnConnect(func(client *centrifuge.Client) {
		client.OnSubscribe(func(event centrifuge.SubscribeEvent, callback centrifuge.SubscribeCallback) {
			callback(centrifuge.SubscribeReply{
				Options: centrifuge.SubscribeOptions{EnableRecovery: history, EnablePositioning: history},
			}, nil)
		})
		client.OnPublish(func(event centrifuge.PublishEvent, callback centrifuge.PublishCallback) {
			if !client.IsSubscribed(event.Channel) {
				callback(centrifuge.PublishReply{}, centrifuge.ErrorPermissionDenied)
				return
			}
			options := centrifuge.PublishOptions{ClientInfo: event.ClientInfo}
			if history {
				options.HistorySize, options.HistoryTTL = historySize, historyLifetime
			}
			callback(centrifuge.PublishReply{Options: options}, nil)
		})
	})
	if err := node.Run(); err != nil {
		log.Fatal(err)
	}

	listener, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port()))
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/connection/websocket", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{
		MessageSizeLimit: 102400,
	}))
	fmt.Println("listening")
	if err := http.Serve(listener, nil); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}

func port() int {
	number, err := strconv.Atoi(os.Getenv("PORT"))
	if err != nil {
		log.Fatal("PORT: ", err)
	}
	return number
}

func show(entry centrifuge.LogEntry) {
	log.Printf("%s %v", entry.Message, entry.Fields)
}
