// Socket.IO with its Redis adapter, WebSocket transport only. No log: its recovery needs another adapter.
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const publisher = createClient({ url: `redis://127.0.0.1:${process.env.REDIS_PORT}` });
const subscriber = publisher.duplicate();
await Promise.all([publisher.connect(), subscriber.connect()]);

const http = createServer();
const io = new Server(http, {
  adapter: createAdapter(publisher, subscriber),
  maxHttpBufferSize: 102400,
  serveClient: false,
  transports: ["websocket"],
});
io.on("connection", (socket) => {
  socket.on("join", (room) => {
    socket.join(room);
    socket.emit("joined", room);
  });
  socket.on("publish", (room, event, data) => {
    if (socket.rooms.has(room)) {
      io.to(room).emit("message", { room, event, from: socket.id, ts: Date.now() / 1000, data });
    }
  });
});
http.listen(Number(process.env.PORT), "127.0.0.1", 1024, () => console.log("listening"));
