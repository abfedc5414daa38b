import asyncio, tempfile, json
from imlmesh_drivers.base import *
from imlmesh_drivers.buses import *
from imlmesh_drivers.child import Child
async def main():
    d=tempfile.mkdtemp(dir='/work/wt/iot')
    site=Site(files=d,pins=PinRules("mock",(4,5,17,18,22,8,9,10,11,2),{17:0}),buses=BusRules(i2c={1:I2cRules("mock",(0x48,0x76,0x50))},serial={"/dev/ttyS0":"mock"},onewire="mock",simulate=True))
    ev=[]
    c=Child("iot",site.to_wire(),lambda n,v: ev.append((n,v)))
    async def go(a,**p):
        try: r=await c.call(a,p,Call("r-1/x/n/1"),10)
        except Exception as e: r=f"{type(e).__name__} {e}"
        print(a,p,'->',r)
    await go("digital_read",pin=4)
    await go("digital_write",pin=17,value=1)
    await go("set_gpio_pin",pin=11,state="LOW",mode="BOARD")
    await go("get_gpio_pin",pin=17)
    await go("set_gpio_pin",pin=1,state="LOW",mode="BOARD")
    await go("set_pin_mode",pin=5,mode="input",pull="up")
    await go("digital_read",pin=5)
    await go("pwm_start",pin=18,frequency_hz=50)
    await go("digital_write",pin=18,value=1)
    await go("pwm_start",pin=18,frequency_hz=50)
    await go("pwm_set_duty_cycle",pin=18,duty_cycle=12.5)
    await go("set_pwm",pin=12,mode="BOARD",frequency=100,duty_cycle=25)
    await go("pwm_stop",pin=18); await go("pwm_stop",pin=18)
    await go("set_servo",pin=18,angle=45); await go("set_servo",pin=18,angle=-90)
    await go("add_event_detect",pin=4,edge="both",bouncetime_ms=0)
    await go("add_event_detect",pin=4)
    await go("digital_read",pin=4)
    await go("digital_write",pin=4,value=1)
    await go("read_adc",channel=0); await go("read_adc",channel=3)
    await go("send_i2c",address=0x48,data=[1,0xC3,0x83]); await go("send_i2c",address=0x48,data=[0])
    await go("receive_i2c",address=0x48,num_bytes=2)
    await go("receive_i2c",address=0x50,num_bytes=2)
    await go("receive_i2c",address=0x51,num_bytes=2); await go("receive_i2c",address=0x51,num_bytes=2,bus=2)
    await go("send_uart",data="read\n"); await go("receive_uart",num_bytes=200,timeout=0.5)
    for s in ({"sensor_type":"DHT22","pin":22},{"sensor_type":"DHT11","pin":2,"unit":"fahrenheit"},{"sensor_type":"DS18B20"},{"sensor_type":"BMP280"},{"pin":4},{"address":72},{}):
        await go("read_sensor",**s)
    await go("digital_write",pin=17,value=1)
    for _ in range(60):
        await asyncio.sleep(0.2)
        if ev: break
    print(ev)
    await c.kill(); await go("digital_read",pin=17); await go("add_event_detect",pin=4)
    await go("cleanup"); await go("cleanup",pins=[4,27])
    await c.close()
asyncio.run(main())
